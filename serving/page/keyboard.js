/** The keys, and the cursor that draws without a pointer. */

const STEP = { fine: 1, usual: 12, far: 60 };
const HOLD_MS = 160;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FOCUSABLE = "a[href], button:not([disabled]), input:not([disabled]), summary, [tabindex='0']";

export class Keyboard {
  /** @param {Record<string, () => void>} actions what the page does beyond the editor: open, download, copy, help, slider */
  constructor(editor, stage, hand, actions) {
    Object.assign(this, { editor, stage, hand, actions });
    this.space = false;
    this.cursor = null;
    this.pen = false;
    this.tab = null;
    addEventListener("keydown", (event) => this.#down(event));
    addEventListener("keyup", (event) => this.#up(event));
    // a key that is let go in another window never tells
    addEventListener("blur", () => this.#letGo());
    addEventListener("pointerdown", () => document.body.classList.remove("by-keys"), true);
    editor.addEventListener("photo", () => {
      if (!editor.photo) this.cursor = null;
    });
  }

  /** Stop drawing with the keyboard. */
  penUp() {
    if (this.pen) this.hand.end();
    this.pen = false;
    this.cursor = null;
  }

  #letGo() {
    clearTimeout(this.tab?.timer);
    this.tab = null;
    this.space = false;
    this.stage.showOriginal(false);
    this.stage.root.classList.remove("grab");
  }

  get #onStage() {
    return document.activeElement === document.body || document.activeElement === this.stage.root;
  }

  #down(event) {
    if (event.key === "Tab" || event.key in ARROWS) document.body.classList.add("by-keys");
    if (document.querySelector("dialog[open]")) return;
    const typing = event.target.matches("input:not([type=range]), textarea");
    if (typing) return;
    const command = event.ctrlKey || event.metaKey;
    const done = command ? this.#commandKey(event) : this.#stageKey(event) || (!event.altKey && this.#plainKey(event));
    if (done) event.preventDefault();
  }

  #commandKey(event) {
    const { editor, actions } = this;
    const key = event.key.toLowerCase();
    if (key === "z" && event.shiftKey) editor.redo();
    else if (key === "z") editor.undo();
    else if (key === "y") editor.redo();
    else if (key === "s") actions.download();
    else if (key === "o") actions.open();
    else if (key === "c" && !getSelection().toString()) actions.copy();
    else return false;
    return true;
  }

  /** Keys that mean something else on a button or a slider. */
  #stageKey(event) {
    if (!this.#onStage || !this.editor.photo) return false;
    if (event.key === "Tab") return this.#tabDown(event);
    if (event.key === " ") return this.#spaceDown(event);
    if (event.key === "Enter") {
      if (this.pen) this.penUp();
      this.editor.erase();
      return true;
    }
    const arrow = ARROWS[event.key];
    if (!arrow) return false;
    this.#moveCursor(arrow, event.shiftKey ? STEP.far : event.altKey ? STEP.fine : STEP.usual);
    return true;
  }

  #plainKey(event) {
    const { editor, stage, actions } = this;
    const { brush, tool, grow, onRelease } = editor.settings;
    if (event.shiftKey && event.key.toLowerCase() === "r") {
      editor.erase();
      return true;
    }
    const keys = {
      "[": () => editor.set({ brush: brush > 20 ? brush * 0.85 : brush - 2 }),
      "]": () => editor.set({ brush: brush > 20 ? brush / 0.85 : brush + 2 }),
      "{": () => editor.growMask(-grow),
      "}": () => editor.growMask(grow),
      b: () => editor.set({ tool: "brush" }),
      e: () => editor.set({ tool: tool === "unbrush" ? "brush" : "unbrush" }),
      l: () => editor.set({ tool: "lasso" }),
      m: () => editor.set({ tool: "box" }),
      s: () => editor.set({ tool: "select" }),
      a: () => editor.set({ onRelease: !onRelease }),
      r: () => editor.again(),
      u: () => (event.shiftKey ? editor.redoErase() : editor.undoErase()),
      i: () => editor.invertMask(),
      x: () => editor.clearMask(),
      delete: () => editor.clearMask(),
      c: () => stage.showOriginal(true),
      "\\": () => actions.slider(),
      "+": () => stage.zoom(1.25),
      "=": () => stage.zoom(1.25),
      "-": () => stage.zoom(0.8),
      0: () => stage.fit(),
      h: () => actions.help(),
      "?": () => actions.help(),
      escape: () => this.#escape(),
    };
    for (const number of [1, 2, 3, 4]) keys[number] = () => editor.choose(number - 1);
    const act = keys[event.key.toLowerCase()];
    if (act) act();
    return Boolean(act);
  }

  #up(event) {
    if (event.key === "Tab" && this.tab) this.#tabUp();
    if (event.key.toLowerCase() === "c") this.stage.showOriginal(false);
    if (event.key === " ") {
      this.space = false;
      this.stage.root.classList.remove("grab");
    }
  }

  /** Held, Tab shows the photo as it came; tapped, it goes to the next control as everywhere. */
  #tabDown(event) {
    if (!event.repeat && !this.tab) {
      const timer = setTimeout(() => this.stage.showOriginal(true), HOLD_MS);
      this.tab = { timer, back: event.shiftKey, since: performance.now() };
    }
    return true;
  }

  #tabUp() {
    const { timer, back, since } = this.tab;
    clearTimeout(timer);
    this.tab = null;
    const compared = this.stage.original || performance.now() - since > HOLD_MS;
    this.stage.showOriginal(false);
    if (!compared) this.#focusNext(back);
  }

  #focusNext(back) {
    const all = [...document.querySelectorAll(FOCUSABLE)].filter((element) => element.checkVisibility() && element.tabIndex >= 0);
    const at = all.indexOf(this.stage.root);
    all[(at + (back ? all.length - 1 : 1)) % all.length]?.focus();
  }

  /** Space puts the pen down and up again where the arrows' cursor is; held with the mouse, it drags the photo. */
  #spaceDown(event) {
    if (event.repeat) return true;
    this.space = true;
    if (!this.cursor) {
      this.stage.root.classList.add("grab");
    } else if (this.pen) {
      this.hand.end();
      this.pen = false;
      this.editor.say("Pen up.");
    } else {
      this.pen = true;
      this.hand.begin(...this.cursor);
      this.editor.say(`Pen down at ${this.#words()}. Arrows draw, Space ends.`);
    }
    return true;
  }

  #moveCursor([dx, dy], step) {
    const { photo } = this.editor;
    const { view } = this.stage;
    const [x, y] = this.cursor ?? [photo.width / 2, photo.height / 2];
    const move = step / view.scale;
    const within = (value, limit) => Math.min(limit, Math.max(0, value));
    this.cursor = [within(x + dx * move, photo.width), within(y + dy * move, photo.height)];
    this.stage.point(...this.cursor);
    this.stage.keepVisible(...this.cursor);
    if (this.pen) this.hand.move(...this.cursor);
    else this.editor.say(this.#words());
  }

  #words() {
    return `${Math.round(this.cursor[0])} right, ${Math.round(this.cursor[1])} down`;
  }

  /** The nearest thing that can be stopped; where there is none, the whole photo is shown again. */
  #escape() {
    if (this.hand.busy) {
      this.hand.cancel();
      this.pen = false;
    } else if (!this.editor.cancel()) {
      if (this.stage.split !== null) this.actions.slider();
      this.stage.fit();
    }
  }
}
