/** What a hand does on the photo, with a pointer or with the keyboard's cursor: it begins somewhere, moves, and ends. */

const LEAST_MOVE = 3;

export class Hand {
  constructor(editor, stage) {
    this.editor = editor;
    this.stage = stage;
    this.operation = null;
    this.last = null;
  }

  get busy() {
    return this.operation !== null;
  }

  /** @param {{erase: boolean, straight: boolean}} how erase: take away from the mask; straight: a line from where the last stroke ended */
  begin(x, y, { erase = false, straight = false } = {}) {
    const { tool, brush } = this.editor.settings;
    this.start = [x, y];
    this.how = { erase, straight };
    const away = erase || tool === "unbrush";
    if (tool === "brush" || tool === "unbrush") {
      const points = straight && this.last ? [...this.last, x, y] : [x, y];
      this.operation = { kind: "stroke", erase: away, size: brush / this.stage.view.scale, points };
    } else {
      this.operation = { kind: "area", erase: tool !== "select" && away, points: [x, y, x, y] };
    }
    this.stage.sketch(this.operation);
  }

  move(x, y) {
    if (!this.operation) return;
    if (this.#boxed) {
      const [x0, y0] = this.start;
      this.operation.points = [x0, y0, x, y0, x, y, x0, y];
    } else {
      this.operation.points.push(x, y);
    }
    this.stage.sketch(this.operation);
  }

  end() {
    const { operation, start, how } = this;
    if (!operation) return;
    this.cancel();
    const { points } = operation;
    this.last = points.slice(-2);
    if (this.editor.settings.tool === "select") {
      this.#select(points, start, how);
    } else if (operation.kind === "stroke" || this.#large(points)) {
      this.editor.draw(operation);
    }
  }

  cancel() {
    this.operation = null;
    this.stage.sketch(null);
  }

  get #boxed() {
    return ["box", "select"].includes(this.editor.settings.tool);
  }

  #large(points) {
    const least = LEAST_MOVE / this.stage.view.scale;
    const [xs, ys] = [points.filter((_, i) => i % 2 === 0), points.filter((_, i) => i % 2 === 1)];
    return spread(xs) >= least && spread(ys) >= least;
  }

  /** A drag is a box; a click a point: a new object, or with Shift or Alt one more point of the last. */
  #select(points, [x, y], { erase, straight }) {
    const { width, height } = this.editor.photo;
    const within = (value, limit) => Math.min(limit, Math.max(0, Math.round(value)));
    if (this.#large(points)) {
      const [x0, x1] = [points[0], points[4]].sort((a, b) => a - b);
      const [y0, y1] = [points[1], points[5]].sort((a, b) => a - b);
      this.editor.select({ box: [within(x0, width), within(y0, height), within(x1, width), within(y1, height)] });
      return;
    }
    const point = [within(x, width - 1), within(y, height - 1), erase ? 0 : 1];
    const before = erase || straight ? (this.editor.mask.operations.at(-1)?.points ?? []) : [];
    const earlier = Array.isArray(before[0]) ? before : [];
    if (erase && !earlier.length) this.editor.say("Select something first; then take away from it.");
    else this.editor.select({ points: [...earlier, point] });
  }
}

function spread(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return high - low;
}
