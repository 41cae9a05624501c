/** The controls around the photo: they show the editor's state and pass on what is pressed. */

import { TOOLS } from "./editor.js";

export class Panel {
  constructor(editor, stage, actions) {
    Object.assign(this, { editor, stage, actions });
    this.find = (id) => document.getElementById(id);
    const { find } = this;
    for (const tool of TOOLS) find(`tool-${tool}`).addEventListener("click", () => editor.set({ tool }));
    find("brush").addEventListener("input", (event) => editor.set({ brush: fromSlider(event.target.valueAsNumber) }));
    for (const radio of document.querySelectorAll("input[name=candidates]")) {
      radio.addEventListener("change", () => editor.set({ candidates: Number(radio.value) }));
    }
    find("on-release").addEventListener("change", (event) => editor.set({ onRelease: event.target.checked }));
    find("grow").addEventListener("input", (event) => editor.set({ grow: event.target.valueAsNumber || 1 }));
    const presses = {
      erase: () => editor.erase(),
      cancel: () => editor.cancel(),
      undo: () => editor.undo(),
      redo: () => editor.redo(),
      "undo-erase": () => editor.undoErase(),
      "redo-erase": () => editor.redoErase(),
      again: () => editor.again(),
      clear: () => editor.clearMask(),
      invert: () => editor.invertMask(),
      bigger: () => editor.growMask(editor.settings.grow),
      smaller: () => editor.growMask(-editor.settings.grow),
      "import-mask": () => find("mask-file").click(),
      "export-mask": () => actions.exportMask(),
      open: () => actions.open(),
      "open-first": () => actions.open(),
      download: () => actions.download(),
      slider: () => actions.slider(),
      help: () => actions.help(),
      close: () => editor.close(),
      "zoom-in": () => stage.zoom(1.25),
      "zoom-out": () => stage.zoom(0.8),
      "zoom-fit": () => stage.fit(),
    };
    for (const [id, act] of Object.entries(presses)) find(id).addEventListener("click", act);
    this.#holdToCompare(find("compare"));
    for (const name of ["photo", "mask", "result", "jobs", "settings"]) editor.addEventListener(name, () => this.show());
    // after a press with a pointer the keys belong to the photo again
    document.addEventListener("click", (event) => {
      if (event.detail > 0 && event.target.closest("button") && !document.querySelector("dialog[open], :popover-open")) stage.root.focus();
    });
    find("options").addEventListener("toggle", (event) => {
      // it would go back to the button, where Enter opens the options again instead of erasing
      if (event.newState === "closed" && !document.body.classList.contains("by-keys")) stage.root.focus();
    });
    this.show();
  }

  #holdToCompare(button) {
    const show = (on) => () => this.stage.showOriginal(on);
    button.addEventListener("pointerdown", show(true));
    for (const name of ["pointerup", "pointerleave", "pointercancel", "blur"]) button.addEventListener(name, show(false));
    button.addEventListener("keydown", (event) => [" ", "Enter"].includes(event.key) && this.stage.showOriginal(true));
    button.addEventListener("keyup", show(false));
  }

  show() {
    const { find, editor } = this;
    const { photo, mask, timeline, jobs, settings } = editor;
    document.body.classList.toggle("editing", Boolean(photo));
    find("file-name").textContent = photo ? photo.name : "";
    find("file-size").textContent = photo ? `${photo.width} × ${photo.height}` : "";
    for (const tool of TOOLS) find(`tool-${tool}`).setAttribute("aria-pressed", String(settings.tool === tool));
    find("brush").value = toSlider(settings.brush);
    find("brush").setAttribute("aria-valuetext", `${settings.brush} pixels of the screen`);
    find("brush-value").textContent = settings.brush;
    find("on-release").checked = settings.onRelease;
    if (document.activeElement !== find("grow")) find("grow").value = settings.grow;
    for (const radio of document.querySelectorAll("input[name=candidates]")) radio.checked = Number(radio.value) === settings.candidates;
    const off = {
      erase: mask.empty,
      undo: !mask.operations.length && !timeline.canUndo && !jobs.length,
      redo: !mask.undone.length && !timeline.canRedo,
      "undo-erase": !timeline.canUndo && !jobs.length,
      "redo-erase": !timeline.canRedo || jobs.length > 0,
      again: !timeline.head || jobs.length > 0,
      download: !timeline.head,
      compare: !timeline.head,
      slider: !timeline.head,
      clear: mask.empty,
      bigger: mask.empty,
      smaller: mask.empty,
      "export-mask": mask.empty && !timeline.head,
    };
    for (const [id, disabled] of Object.entries(off)) find(id).disabled = disabled;
    find("cancel").hidden = !jobs.length;
    find("erase").hidden = jobs.length > 0 && mask.empty;
    find("erase").querySelector("span").textContent = jobs.length ? "Erase next" : "Erase";
    document.body.dataset.jobs = jobs.length;
    find("folder-line").textContent = `cleanplate clean --input FOLDER --output PLATES --candidates ${settings.candidates}`;
    if (!timeline.head && this.stage.split !== null) this.actions.slider();
  }
}

// the slider is logarithmic: 2 to 400 pixels
function fromSlider(value) {
  return Math.round(2 * 200 ** (value / 100));
}

function toSlider(brush) {
  return Math.round((100 * Math.log(brush / 2)) / Math.log(200));
}
