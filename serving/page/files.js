/** Files in and out: opened, dropped, pasted; saved, copied. */

export class Files {
  constructor(editor) {
    this.editor = editor;
    this.photoField = document.getElementById("photo-file");
    this.maskField = document.getElementById("mask-file");
    this.photoField.addEventListener("change", () => this.#taken(this.photoField, (file) => editor.open(file)));
    this.maskField.addEventListener("change", () => this.#taken(this.maskField, (file) => editor.importMask(file)));
    addEventListener("paste", (event) => this.#pasted(event));
    addEventListener("dragover", (event) => {
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
    addEventListener("drop", (event) => this.#dropped(event));
  }

  choosePhoto() {
    this.photoField.click();
  }

  #taken(field, take) {
    const [file] = field.files;
    field.value = "";
    if (file) take(file);
  }

  #pasted(event) {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    this.editor.open(file, file.name === "image.png" ? "pasted.png" : file.name);
  }

  /** A file dropped with Shift, or whose name says so, is a mask for the open photo. */
  #dropped(event) {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const [file] = event.dataTransfer.files;
    if (!file) return;
    const isMask = this.editor.photo && (event.shiftKey || /mask[^/]*\.png$/i.test(file.name));
    if (isMask) this.editor.importMask(file);
    else this.editor.open(file);
  }

  /** Save the result in the upload's format. */
  async download() {
    if (!this.editor.timeline.head) return this.editor.say("There is no result to save yet.");
    this.editor.say("Preparing the file…", "busy");
    try {
      const { blob, name } = await this.editor.result();
      save(blob, name ?? `${this.#stem()}_erased.png`);
      return this.editor.say("Saved.");
    } catch (error) {
      return this.editor.say(error.message, "error");
    }
  }

  async exportMask() {
    const blob = await this.editor.exportMask();
    if (!blob) return this.editor.say("There is no mask yet.");
    save(blob, `${this.#stem()}_mask.png`);
    return this.editor.say("Mask saved.");
  }

  /** Put the result on the clipboard, as PNG: browsers take no other format there. */
  async copy() {
    if (!this.editor.timeline.head) return;
    try {
      const png = this.editor.result("png").then(({ blob }) => blob);
      await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
      this.editor.say("Result copied.");
    } catch (error) {
      this.editor.say(`The result cannot be copied: ${error.message}`, "error");
    }
  }

  #stem() {
    return this.editor.photo.name.replace(/\.[^.]*$/, "");
  }
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
