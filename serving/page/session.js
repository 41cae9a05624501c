/** The session in the browser's own database, so that a reload loses nothing. Photo and state are kept apart: the photo is written once. */

import { Picture } from "./picture.js";
import { Timeline } from "./timeline.js";

const NAME = "cleanplate";
const STORE = "session";
const DELAY_MS = 150;

export class Session {
  constructor(editor) {
    this.editor = editor;
    this.kept = null;
    this.timer = 0;
    this.version = 0;
    for (const name of ["photo", "mask", "result", "settings", "jobs"]) editor.addEventListener(name, () => this.#soon());
    addEventListener("pagehide", () => this.save());
  }

  #soon() {
    clearTimeout(this.timer);
    document.documentElement.dataset.saved = "no";
    this.version++;
    this.timer = setTimeout(() => this.save(), DELAY_MS);
  }

  async save() {
    clearTimeout(this.timer);
    const { photo, timeline, mask, jobs, settings } = this.editor;
    const version = ++this.version;
    try {
      const store = await open("readwrite");
      if (!photo) {
        store.clear();
      } else {
        if (this.kept !== photo) store.put(photo.blob, "photo");
        const operations = [...jobs.flatMap((job) => (job.retry ? [] : job.operations)), ...mask.operations];
        store.put(state(photo, timeline, operations, settings), "state");
      }
      await finished(store.transaction);
      this.kept = photo;
      if (version === this.version) document.documentElement.dataset.saved = "yes";
    } catch (error) {
      console.warn("the session cannot be kept:", error.message);
    }
  }

  /** Bring back what was kept. @returns {Promise<boolean>} whether there was something */
  async load() {
    try {
      const store = await open("readonly");
      const [blob, kept] = await Promise.all([value(store.get("photo")), value(store.get("state"))]);
      if (!blob || !kept) return false;
      const picture = await Picture.decode(blob);
      const { name, image, steps, position, operations, settings } = kept;
      const timeline = new Timeline();
      for (const step of steps) timeline.steps.push(await revived(step, timeline.steps));
      timeline.position = position;
      const photo = { blob, name, image, picture, width: picture.width, height: picture.height };
      this.kept = photo;
      this.editor.restore({ photo, operations: await Promise.all(operations.map(drawable)), timeline, settings });
      return true;
    } catch (error) {
      console.warn("the kept session cannot be read:", error.message);
      return false;
    }
  }
}

function state(photo, timeline, operations, settings) {
  return {
    name: photo.name,
    image: photo.image,
    position: timeline.position,
    operations: operations.map(storable),
    settings,
    steps: timeline.steps.map(({ parent, operations: drawn, mask, request, results, chosen }) => ({
      parent: parent ? timeline.steps.indexOf(parent) : -1,
      operations: drawn.map(storable),
      mask,
      request,
      chosen,
      results: results.map(({ id, score, seed, patch }) => ({ id, score, seed, patch })),
    })),
  };
}

async function revived(step, before) {
  const results = step.results.map(async (result) => {
    const { patch } = result;
    return { ...result, picture: patch ? await Picture.decode(patch.blob, patch.x, patch.y) : null };
  });
  return {
    ...step,
    parent: step.parent < 0 ? null : before[step.parent],
    operations: await Promise.all(step.operations.map(drawable)),
    results: await Promise.all(results),
  };
}

function storable({ bitmap, ...rest }) {
  return rest;
}

async function drawable(operation) {
  return operation.kind === "bitmap" ? { ...operation, bitmap: await createImageBitmap(operation.blob) } : operation;
}

function open(mode) {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result.transaction(STORE, mode).objectStore(STORE));
    request.onerror = () => reject(request.error);
  });
}

function value(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function finished(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}
