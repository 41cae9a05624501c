/** Mouse, pen and fingers on the stage. */

const WHEEL_STEP = 1.0016;
const PINCH_STEP = 1.01;

export class Pointer {
  constructor(stage, editor, hand, keyboard) {
    Object.assign(this, { stage, editor, hand, keyboard });
    this.down = new Map();
    this.mode = null;
    const { root } = stage;
    root.addEventListener("pointerdown", (event) => this.#press(event));
    root.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) root.addEventListener(name, (event) => this.#release(event));
    root.addEventListener("pointerleave", () => this.down.size || this.stage.point(null));
    root.addEventListener("contextmenu", (event) => this.editor.photo && event.preventDefault());
    root.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
  }

  #place(event) {
    const box = this.stage.root.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #press(event) {
    if (!this.editor.photo || event.target.closest("input, button")) return;
    event.preventDefault();
    this.stage.root.focus({ preventScroll: true });
    try {
      this.stage.root.setPointerCapture(event.pointerId);
    } catch {
      // the finger is gone already
    }
    const place = this.#place(event);
    this.down.set(event.pointerId, place);
    if (this.down.size === 2) {
      this.hand.cancel();
      this.mode = "pinch";
    } else if (this.down.size === 1) {
      this.#begin(event, place);
    }
  }

  #begin(event, place) {
    if (event.button === 1 || this.keyboard.space) {
      this.mode = "pan";
      // the middle button leaves it as it is: where it is not held there will be no key that goes up
      if (this.keyboard.space) this.keyboard.space = "used";
      this.stage.root.classList.add("panning");
    } else if (event.button === 0 || event.button === 2) {
      this.mode = "draw";
      this.keyboard.penUp();
      const erase = event.button === 2 || event.altKey;
      this.hand.begin(...this.stage.view.toPhoto(...place), { erase, straight: event.shiftKey });
    }
  }

  #move(event) {
    if (!this.editor.photo) return;
    const place = this.#place(event);
    if (event.pointerType !== "touch") this.stage.point(...this.stage.view.toPhoto(...place));
    const before = this.down.get(event.pointerId);
    if (!before) return;
    if (this.mode === "pan") this.stage.pan(place[0] - before[0], place[1] - before[1]);
    if (this.mode === "pinch") this.#pinch(event.pointerId, before, place);
    this.down.set(event.pointerId, place);
    if (this.mode !== "draw") return;
    const all = event.getCoalescedEvents?.() ?? [];
    for (const one of all.length ? all : [event]) this.hand.move(...this.stage.view.toPhoto(...this.#place(one)));
  }

  #pinch(id, before, place) {
    const other = [...this.down].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const [was, is] = [before, place].map(([x, y]) => Math.hypot(x - other[0], y - other[1]));
    this.stage.pan((place[0] - before[0]) / 2, (place[1] - before[1]) / 2);
    if (was > 0) this.stage.zoom(is / was, (place[0] + other[0]) / 2, (place[1] + other[1]) / 2);
  }

  #release(event) {
    if (!this.down.delete(event.pointerId)) return;
    if (this.mode === "draw") {
      if (event.type === "pointerup") this.hand.end();
      else this.hand.cancel();
    }
    // after a pinch the finger that is left must not draw
    if (!this.down.size) {
      this.mode = null;
      this.stage.root.classList.remove("panning");
    }
  }

  /** The wheel zooms, with Alt it sizes the brush; a touch pad's pinch arrives as Ctrl and wheel, its sideways strokes pan. */
  #wheel(event) {
    if (!this.editor.photo) return;
    event.preventDefault();
    const pixels = event.deltaMode === 1 ? 24 : 1;
    const [dx, dy] = [event.deltaX * pixels, event.deltaY * pixels];
    if (event.altKey) this.editor.set({ brush: this.editor.settings.brush * (dx + dy > 0 ? 0.9 : 1 / 0.9) });
    else if (event.ctrlKey) this.stage.zoom(PINCH_STEP ** -dy, ...this.#place(event));
    else if (event.shiftKey || Math.abs(dx) > Math.abs(dy)) this.stage.pan(-(dx || dy), 0);
    else this.stage.zoom(WHEEL_STEP ** -dy, ...this.#place(event));
  }
}
