// Decisions that the server does not have yet: kept in IndexedDB, sent in order, and sent again until the server says that it has them.
// Ids make that harmless: a decision that arrives twice is one.

import { post, Refused } from './api.js';

const LONGEST_WAIT = 15_000;
const AT_ONCE = 50;
const KEPT = 100;

function opened() {
  return new Promise((done, failed) => {
    const asked = indexedDB.open('cleanplate-review', 1);
    asked.onupgradeneeded = () => {
      asked.result.createObjectStore('outbox', { autoIncrement: true });
      asked.result.createObjectStore('history', { autoIncrement: true });
    };
    asked.onsuccess = () => done(asked.result);
    asked.onerror = () => failed(asked.error);
  });
}

function finished(transaction) {
  return new Promise((done, failed) => {
    transaction.oncomplete = () => done();
    transaction.onabort = transaction.onerror = () => failed(transaction.error);
  });
}

export class Outbox {
  // changed(state, count): state is saved, sending, waiting or refused; count how many the server does not have.
  // progressed(progress): how far the queue is, as the server last said
  constructor(owner, changed, progressed) {
    this.owner = owner; // `${queue}/${annotator}`: one browser may serve several
    this.changed = changed;
    this.progressed = progressed;
    this.waiting = [];
    this.wait = 1000;
    this.sending = null;
    this.timer = 0;
  }

  // What an earlier visit left: fills the queue, and returns the last decisions (with their items), for undo.
  async open() {
    this.database = await opened().catch(() => null); // private windows may have none: then memory has to do
    if (!this.database) return [];
    const transaction = this.database.transaction(['outbox', 'history']);
    const read = (name) => new Promise((done, failed) => {
      const asked = transaction.objectStore(name).getAll();
      asked.onsuccess = () => done(asked.result.filter((row) => row.owner === this.owner));
      asked.onerror = () => failed(asked.error);
    });
    const [left, past] = await Promise.all([read('outbox'), read('history')]);
    this.waiting = left.map((row) => row.decision);
    addEventListener('online', () => this.flush());
    addEventListener('pagehide', () => this.#last());
    return past.slice(-KEPT);
  }

  // Returns at once; `item` goes into the history with a verdict.
  add(decision, item, group = null) {
    this.waiting.push(decision);
    if (this.database) {
      const transaction = this.database.transaction(['outbox', 'history'], 'readwrite');
      transaction.objectStore('outbox').add({ owner: this.owner, decision });
      if (decision.kind === 'verdict') transaction.objectStore('history').add({ owner: this.owner, decision, item, group });
      transaction.commit?.(); // written even if the page is closed now
    }
    this.changed('sending', this.waiting.length);
    queueMicrotask(() => this.flush());
  }

  // Sends what waits; resolves when nothing does, or when the server could not be reached (it will be tried again).
  flush() {
    clearTimeout(this.timer);
    this.sending ??= this.#send().finally(() => { this.sending = null; });
    return this.sending;
  }

  async #send() {
    while (this.waiting.length) {
      const batch = this.waiting.slice(0, AT_ONCE);
      let answer;
      try {
        answer = await post('decisions', { decisions: batch }, true);
      } catch (error) {
        this.changed('waiting', this.waiting.length);
        if (error instanceof Refused && error.status === 401) throw error;
        this.timer = setTimeout(() => this.flush(), this.wait);
        this.wait = Math.min(this.wait * 2, LONGEST_WAIT);
        return;
      }
      this.wait = 1000;
      this.progressed(answer.progress);
      const gone = new Set([...answer.stored, ...answer.refused.map((row) => row.id)]);
      this.waiting = this.waiting.filter((row) => !gone.has(row.id));
      await this.#forget(gone);
      if (answer.refused.length) this.changed('refused', this.waiting.length, answer.refused[0].why);
      else this.changed(this.waiting.length ? 'sending' : 'saved', this.waiting.length);
    }
  }

  async #forget(ids) {
    if (!this.database) return;
    const transaction = this.database.transaction(['outbox', 'history'], 'readwrite');
    transaction.objectStore('outbox').openCursor().onsuccess = (event) => {
      const cursor = event.target.result;
      if (!cursor) return;
      if (ids.has(cursor.value.decision.id)) cursor.delete();
      cursor.continue();
    };
    const past = transaction.objectStore('history');
    past.getAllKeys().onsuccess = (event) => {
      for (const old of event.target.result.slice(0, -4 * KEPT)) past.delete(old);
    };
    await finished(transaction).catch(() => {}); // then it is sent once more, which does no harm
  }

  #last() {
    if (this.waiting.length) post('decisions', { decisions: this.waiting.slice(0, AT_ONCE) }, true).catch(() => {});
  }
}
