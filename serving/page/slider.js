/** The slider that shows the photo as it came on its left, and the result on its right. */

export class Slider {
  constructor(stage, editor) {
    this.stage = stage;
    this.editor = editor;
    this.range = document.getElementById("split");
    this.button = document.getElementById("slider");
    this.range.addEventListener("input", () => this.#move());
    new ResizeObserver(() => this.#place()).observe(stage.root);
    for (const name of ["wheel", "pointermove", "keyup"]) stage.root.addEventListener(name, () => this.#place());
  }

  toggle() {
    const on = this.range.hidden && this.editor.timeline.head !== null;
    this.range.hidden = !on;
    this.button.setAttribute("aria-pressed", String(on));
    if (on) {
      this.range.value = 50;
      this.#move();
      this.range.focus();
    } else {
      this.stage.splitAt(null);
      this.stage.root.focus();
    }
  }

  #move() {
    this.#place();
    this.stage.splitAt(this.range.valueAsNumber / 100);
  }

  #place() {
    if (this.range.hidden || !this.editor.photo) return;
    const [left, right, top, bottom] = this.stage.span;
    this.range.style.left = `${left}px`;
    this.range.style.width = `${Math.max(0, right - left)}px`;
    this.range.style.top = `${top}px`;
    this.range.style.height = `${Math.max(0, bottom - top)}px`;
    this.range.style.setProperty("--at", this.range.valueAsNumber / 100);
  }
}
