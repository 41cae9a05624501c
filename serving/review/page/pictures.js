// Pictures of items, fetched and decoded ahead by a worker.

import { base, key } from './api.js';

export class Pictures {
  constructor() {
    this.worker = new Worker(new URL('./decoder.js', import.meta.url), { type: 'module' });
    this.asked = new Map(); // number -> { done, failed }
    this.known = new Map(); // id -> { promise, made, error }
    this.number = 0;
    this.worker.onmessage = ({ data }) => {
      const { done, failed } = this.asked.get(data.number);
      this.asked.delete(data.number);
      if (data.made) done(data.made); else failed(Object.assign(new Error(data.error), { status: data.status }));
    };
  }

  #ask(id, screen, extra = {}) {
    const number = (this.number += 1);
    return new Promise((done, failed) => {
      this.asked.set(number, { done, failed });
      this.worker.postMessage({ number, id, base, key, screen, ...extra });
    });
  }

  // Starts to load an item, unless it is there or under way.
  prefetch(id, screen, extra = {}) {
    let entry = this.known.get(id);
    if (entry) return entry;
    entry = { made: null, error: null };
    this.known.set(id, entry);
    entry.promise = this.#ask(id, screen, extra).then(
      (made) => { entry.made = made; },
      (error) => { entry.error = error; },
    );
    return entry;
  }

  // The item again as another part of the photo (`rect`), the whole of it, or for another screen.
  async again(id, screen, extra) {
    const entry = this.known.get(id);
    const made = await this.#ask(id, screen, { ...extra, urgent: true });
    if (this.known.get(id) !== entry) return null; // released meanwhile
    for (const name of ['before', 'after', 'outline']) entry?.made?.[name].close();
    if (entry) entry.made = made;
    return made;
  }

  release(id) {
    const made = this.known.get(id)?.made;
    if (made) for (const name of ['before', 'after', 'outline']) made[name].close();
    this.known.delete(id);
    this.worker.postMessage({ release: id });
  }
}
