/**
 * What is being edited, and what can be done to it. It knows no element of the page: it tells by events what changed (`photo`, `mask`,
 * `result`, `jobs`, `settings`), and speaks through `say`.
 */

import { Mask } from "./mask.js";
import { Picture } from "./picture.js";
import { Timeline } from "./timeline.js";

export const TOOLS = ["brush", "unbrush", "lasso", "box", "select"];

export class Editor extends EventTarget {
  /** @param {(text: string, kind?: "error"|"busy") => void} say */
  constructor(api, say) {
    super();
    this.api = api;
    this.say = say;
    this.photo = null;
    this.mask = new Mask(0, 0);
    this.timeline = new Timeline();
    this.jobs = [];
    this.settings = { tool: "brush", brush: 40, candidates: 1, onRelease: false, grow: 4 };
  }

  #tell(...names) {
    for (const name of names) this.dispatchEvent(new Event(name));
  }

  set(changes) {
    Object.assign(this.settings, changes);
    this.settings.brush = Math.round(Math.min(400, Math.max(2, this.settings.brush)));
    this.#tell("settings");
  }

  // ---- the photo

  /** Open a file in place of what is open. @returns {Promise<boolean>} whether it could be read */
  async open(blob, name = blob.name || "photo.png") {
    let picture;
    try {
      picture = await Picture.decode(blob);
    } catch {
      this.say(`This browser cannot show ${name}. JPEG, PNG, WebP, GIF and BMP work.`, "error");
      return false;
    }
    this.close();
    this.#adopt({ blob, name, picture, width: picture.width, height: picture.height, image: null });
    this.say(`${name}, ${picture.width} by ${picture.height} pixels. Brush over what should go.`);
    this.#uploaded().catch((error) => this.say(error.message, "error"));
    return true;
  }

  /** Go on with a session that was kept. */
  restore({ photo, operations, timeline, settings }) {
    this.close();
    this.#adopt(photo);
    this.mask.operations = operations;
    this.timeline = timeline;
    this.set(settings);
    this.#tell("mask", "result");
    this.say(`${photo.name} is back, as you left it.`);
  }

  #adopt(photo) {
    this.photo = photo;
    this.mask = new Mask(photo.width, photo.height);
    this.timeline = new Timeline();
    this.#tell("photo", "mask", "result", "jobs");
  }

  close() {
    if (!this.photo) return;
    for (const job of this.jobs) job.controller.abort();
    this.jobs = [];
    if (this.photo.image) this.api.forget(this.photo.image);
    this.photo.picture.close();
    for (const step of this.timeline.steps) for (const result of step.results) result.picture?.close();
    this.photo = null;
    this.mask = new Mask(0, 0);
    this.timeline = new Timeline();
    this.#tell("photo", "mask", "result", "jobs");
  }

  /** The photo's id on the server; it is sent at most once at a time. */
  async #uploaded() {
    const photo = this.photo;
    if (photo.image) return photo.image;
    photo.uploading ??= this.api.upload(photo.blob, photo.name).finally(() => (photo.uploading = null));
    const { id, width, height } = await photo.uploading;
    if (width !== photo.width || height !== photo.height) {
      throw new Error(`The server reads ${width} by ${height} pixels, this browser ${photo.width} by ${photo.height}.`);
    }
    photo.image = id;
    this.#tell("photo");
    return id;
  }

  // ---- the mask

  draw(operation) {
    this.mask.add(operation);
    this.#tell("mask");
    if (this.settings.onRelease && !operation.erase && ["stroke", "area"].includes(operation.kind)) this.erase();
  }

  clearMask() {
    if (this.mask.empty) return;
    this.mask.add({ kind: "clear" });
    this.#tell("mask");
    this.say("Mask cleared.");
  }

  invertMask() {
    if (!this.photo) return;
    this.mask.add({ kind: "invert" });
    this.#tell("mask");
    this.say("Mask inverted.");
  }

  async growMask(pixels) {
    if (!(await this.mask.grow(pixels))) return this.say("There is no mask yet.");
    this.#tell("mask");
    return this.say(pixels > 0 ? `Mask grown by ${pixels} pixels.` : `Mask shrunk by ${-pixels} pixels.`);
  }

  async importMask(blob) {
    if (!this.photo) return this.say("Open a photo before its mask.", "error");
    let operation;
    try {
      operation = await this.mask.load(blob);
    } catch {
      return this.say("That file is no picture that this browser reads.", "error");
    }
    if (!operation) return this.say("That mask is all black: white means remove.", "error");
    this.mask.add(operation);
    this.#tell("mask");
    return this.say("Mask added.");
  }

  /** The mask as a PNG of the photo's size; where nothing is drawn, the mask of the last erase. Null where there is neither. */
  async exportMask() {
    const operations = this.mask.empty ? this.timeline.head?.operations : this.mask.operations;
    return operations ? ((await this.mask.png(operations, true))?.blob ?? null) : null;
  }

  /** Add to the mask what the server finds at points `[x, y, 1 or 0]` or in a box. */
  async select({ points, box }) {
    this.say("Looking for the object…", "busy");
    try {
      const image = await this.#uploaded();
      const blob = await this.#again((id) => this.api.segment(id, { base: this.#base(), points, box }), image);
      const operation = await this.mask.load(blob);
      if (!operation) return this.say("Nothing was found there.");
      operation.points = points;
      if (points && this.mask.operations.at(-1)?.points && points.length > 1) this.mask.undo();
      this.draw(operation);
      return this.say("Selected. Shift adds, Alt takes away, Enter erases.");
    } catch (error) {
      return this.#failed(error);
    }
  }

  // ---- erasing

  /** Erase what is drawn. More may be drawn meanwhile; erases wait for each other. */
  erase() {
    if (!this.photo) return;
    if (this.mask.empty) return this.say("Brush over something first.");
    const { candidates } = this.settings;
    this.#enqueue({ operations: this.mask.take(), request: { candidates, seed: 0 } });
    this.#tell("mask");
  }

  /** Erase the last mask once more, with new seeds. */
  again() {
    const head = this.timeline.head;
    if (!head) return this.say("Nothing has been erased yet.");
    if (this.jobs.length) return;
    const { candidates } = this.settings;
    const seed = head.request.seed + head.request.candidates;
    this.#enqueue({ operations: head.operations, parent: head.parent, retry: true, request: { candidates, seed } });
  }

  #enqueue(job) {
    job.controller = new AbortController();
    this.jobs.push(job);
    this.#tell("jobs");
    if (this.jobs.length === 1) this.#work();
  }

  async #work() {
    while (this.jobs.length) {
      const job = this.jobs[0];
      try {
        await this.#run(job);
      } catch (error) {
        if (!job.controller.signal.aborted) {
          this.#failed(error);
          if (!job.retry) this.mask.giveBack(job.operations);
        }
      }
      const at = this.jobs.indexOf(job);
      if (at >= 0) this.jobs.splice(at, 1);
      else if (job.controller.signal.aborted) return;
      this.#tell("mask", "jobs");
    }
  }

  async #run(job) {
    const { signal } = job.controller;
    const parent = job.retry ? job.parent : this.timeline.head;
    const mask = await this.mask.png(job.operations);
    if (!mask) throw new Error("That mask lies beside the photo.");
    this.say("Erasing…", "busy");
    const started = performance.now();
    await this.#uploaded();
    const send = (id) => this.api.erase(id, mask, { ...job.request, base: idOf(parent) }, signal);
    const answer = await this.#again(send, this.photo.image, parent);
    const results = await Promise.all(answer.results.map(decodeResult));
    signal.throwIfAborted();
    this.timeline.add({ parent, operations: job.operations, mask, request: job.request, results, chosen: 0, born: performance.now() });
    this.#tell("result");
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    const score = results[0].score === null || results[0].score === undefined ? "" : `, score ${Math.round(results[0].score * 100)} of 100`;
    this.say(`Erased in ${seconds} s${score}.`);
  }

  /** Call the server; where it has forgotten the photo or a result, send all again and call once more. */
  async #again(call, image, head = this.timeline.head) {
    try {
      return await call(image);
    } catch (error) {
      if (error.status !== 404) throw error;
    }
    this.photo.image = null;
    const id = await this.#uploaded();
    const chain = [];
    for (let step = head; step; step = step.parent) chain.unshift(step);
    for (const step of chain) {
      const answer = await this.api.erase(id, step.mask, { ...step.request, base: idOf(step.parent) });
      step.results.forEach((result, index) => (result.id = answer.results[index].id));
    }
    return call(id);
  }

  #base() {
    return idOf(this.timeline.head);
  }

  #failed(error) {
    if (error.name !== "AbortError") this.say(error.message, "error");
  }

  /** Stop the newest erase that is not done; its strokes come back. @returns {boolean} whether there was one */
  cancel() {
    const job = this.jobs.pop();
    if (!job) return false;
    job.controller.abort();
    if (!job.retry) this.mask.giveBack(job.operations);
    this.#tell("mask", "jobs");
    this.say("Cancelled.");
    return true;
  }

  // ---- back and forth

  /** Take back the last stroke; where there is none, the last erase. */
  undo() {
    if (this.mask.undo()) this.#tell("mask");
    else this.undoErase();
  }

  redo() {
    if (this.mask.redo()) this.#tell("mask");
    else this.redoErase();
  }

  /** Take back the last erase and no stroke; its mask comes back where none is drawn. */
  undoErase() {
    if (this.cancel()) return;
    const step = this.timeline.undo();
    if (!step) return;
    if (this.timeline.head === step.parent && this.mask.empty) this.mask.operations = [...step.operations];
    this.#tell("mask", "result");
    this.say("Erase undone.");
  }

  redoErase() {
    if (this.jobs.length) return;
    const step = this.timeline.redo();
    if (!step) return;
    const drawn = this.mask.operations;
    if (drawn.length === step.operations.length && drawn.every((one, i) => one === step.operations[i])) this.mask.take();
    this.#tell("mask", "result");
    this.say("Erase done again.");
  }

  /** Show candidate `index` (0 is the best) of the last erase. */
  choose(index) {
    if (this.jobs.length) return this.say("Wait for the erase, or press Esc.");
    if (!this.timeline.choose(index)) return;
    this.#tell("result");
    const { score } = this.timeline.head.results[index];
    this.say(`Candidate ${index + 1}${score === null || score === undefined ? "" : `, score ${Math.round(score * 100)} of 100`}.`);
  }

  // ---- the result

  /** The whole result `{blob, name}` in the upload's format, or as `format`; null where nothing was erased. */
  async result(format) {
    if (!this.timeline.head) return null;
    return this.#again((id) => this.api.result(id, this.#base(), format), await this.#uploaded());
  }
}

function idOf(step) {
  return step ? step.results[step.chosen].id : undefined;
}

async function decodeResult({ id, score, seed, patch }) {
  if (!patch || !patch.width || !patch.data) return { id, score, seed, patch: null, picture: null };
  const bytes = Uint8Array.from(atob(patch.data), (letter) => letter.charCodeAt(0));
  const blob = new Blob([bytes], { type: patch.type });
  return { id, score, seed, patch: { x: patch.x, y: patch.y, blob }, picture: await Picture.decode(blob, patch.x, patch.y) };
}
