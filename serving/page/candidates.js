/** The strip of candidates of the last erase: a picture of each, its score, its key. */

const SIDE = 72;
const CONTEXT = 1.25;

export class Candidates {
  constructor(editor, root) {
    this.editor = editor;
    this.root = root;
    this.list = root.querySelector(".choices");
    this.step = null;
    editor.addEventListener("result", () => this.show());
    editor.addEventListener("photo", () => this.show());
    editor.addEventListener("jobs", () => this.show());
  }

  show() {
    const { timeline } = this.editor;
    const step = timeline.head;
    this.root.hidden = !step && !timeline.canRedo;
    if (step !== this.step) {
      this.step = step;
      this.list.replaceChildren(...(step ? step.results.map((result, index) => this.#choice(step, result, index)) : []));
    }
    [...this.list.children].forEach((button, index) => {
      button.setAttribute("aria-pressed", String(index === step.chosen));
    });
  }

  #choice(step, result, index) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "choice";
    const known = typeof result.score === "number";
    const percent = known ? Math.round(result.score * 100) : null;
    button.title = known ? `Candidate ${index + 1}: the discriminator is ${percent} % sure that it is gone` : `Candidate ${index + 1}`;
    button.setAttribute("aria-label", button.title);
    button.append(this.#thumbnail(step, result), label("key", String(index + 1)));
    if (known) {
      const score = label("score", String(percent));
      score.dataset.verdict = result.score > 0.9 ? "good" : result.score >= 0.5 ? "fair" : "poor";
      button.append(score);
    }
    button.addEventListener("click", () => this.editor.choose(index));
    return button;
  }

  /** The square around what changed, with all steps below it. */
  #thumbnail(step, result) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = Math.round(SIDE * devicePixelRatio);
    const { picture } = this.editor.photo;
    const box = result.picture ?? step.results.find((one) => one.picture)?.picture ?? picture;
    const side = Math.min(Math.max(box.width, box.height) * CONTEXT, picture.width, picture.height);
    const scale = canvas.width / side;
    const left = within(box.x + (box.width - side) / 2, picture.width - side);
    const top = within(box.y + (box.height - side) / 2, picture.height - side);
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, -left * scale, -top * scale);
    const below = [];
    for (let one = step.parent; one; one = one.parent) below.unshift(one.results[one.chosen].picture);
    for (const layer of [picture, ...below, result.picture]) layer?.draw(context, scale);
    return canvas;
  }
}

function within(value, limit) {
  return Math.min(limit, Math.max(0, value));
}

function label(name, text) {
  const span = document.createElement("span");
  span.className = name;
  span.textContent = text;
  span.ariaHidden = "true";
  return span;
}
