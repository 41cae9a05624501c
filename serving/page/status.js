/** One line that says what happens, seen by the eye and read by a screen reader. */

const SHOWN_MS = { usual: 4000, error: 10000 };

export class Status {
  constructor(root) {
    this.root = root;
    this.timer = 0;
  }

  /** @param {"error"|"busy"|undefined} kind an error stays longer, `busy` until something else is said */
  say(text, kind) {
    clearTimeout(this.timer);
    this.root.textContent = text;
    this.root.dataset.kind = kind ?? "usual";
    this.root.classList.add("shown");
    if (kind !== "busy") this.timer = setTimeout(() => this.root.classList.remove("shown"), SHOWN_MS[kind ?? "usual"]);
  }
}
