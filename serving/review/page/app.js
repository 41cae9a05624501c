// The desk: one key decides, saves and goes on. What is to be judged next is fetched and decoded before it is needed.

import { get, key, post } from './api.js';
import { Grid } from './grid.js';
import { Outbox } from './outbox.js';
import { Pictures } from './pictures.js';
import { Stage } from './stage.js';

const AHEAD = 16;
const BEHIND = 6; // items whose pictures are kept for undo
const REASONS = { object_left: 'object left', new_object: 'new object', shadow_left: 'shadow left', blur: 'blur or texture', seam: 'seam or outside' };
const element = (id) => document.getElementById(id);

class Desk {
  constructor() {
    this.pictures = new Pictures();
    this.stage = new Stage(element('canvas'), element('tag'), (rect) => this.#sharpen(rect));
    this.grid = new Grid(element('grid'), this.pictures);
    this.ahead = []; // items, in order; the first is before the eyes
    this.history = []; // { decision, item, group }
    this.session = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
    this.sequence = 0;
    this.latencies = []; // ms from the key to the next picture: { drawn, painted, ready }
    this.whole = false;
    this.inGrid = false;
    this.shownAt = 0;
    this.fetching = null;
    this.left = null;
    this.shown = null; // the item on the stage
  }

  async start() {
    if (!key) return this.note('Open the link that was made for you: it holds your key.');
    try {
      this.me = await this.#patiently(() => get('me'));
    } catch (error) {
      return this.note(error.message);
    }
    document.title = `Review: ${this.me.queue}`;
    this.#reasons();
    this.outbox = new Outbox(`${this.me.queue}/${this.me.annotator}`, (...told) => this.#sync(...told), (progress) => this.#progress(progress));
    this.history = await this.outbox.open();
    this.#undone();
    this.#progress(this.me.progress);
    await this.outbox.flush();
    await this.#more();
    this.#present();
  }

  // Again and again until it works; only a refusal ends it.
  async #patiently(work) {
    for (let wait = 500; ; wait = Math.min(wait * 2, 10_000)) {
      try {
        return await work();
      } catch (error) {
        if (error.status >= 400 && error.status < 500) throw error;
        this.#sync('waiting', this.outbox?.waiting.length ?? 0);
        await new Promise((done) => setTimeout(done, wait));
      }
    }
  }

  // Fills up what is ahead; one request at a time.
  #more() {
    if (this.inGrid || this.ahead.length >= AHEAD || this.left === 0) return this.fetching ?? Promise.resolve();
    this.fetching ??= this.#patiently(() => post('next', { count: AHEAD + 1 - this.ahead.length, holding: this.#holding() }))
      .then((answer) => {
        const known = new Set(this.#holding());
        const fresh = answer.items.filter((item) => !known.has(item.id) && !this.ahead.some((other) => other.id === item.id));
        this.ahead.push(...fresh);
        this.left = answer.items.length ? null : 0;
        if (this.left === 0) setTimeout(() => { this.left = null; this.#more(); }, 30_000); // others may give items back
        this.#progress(answer.progress);
        this.#prefetch();
        if (!this.shown) this.#present();
      })
      .catch((error) => this.note(error.message))
      .finally(() => { this.fetching = null; });
    return this.fetching;
  }

  // What must not be handed out again: what is here, and what is decided but not sent.
  #holding() {
    return [...new Set([...this.ahead.map((item) => item.id), ...(this.outbox?.waiting ?? []).map((row) => row.item)])].slice(-400);
  }

  #prefetch() {
    for (const item of this.ahead.slice(0, AHEAD + 1)) {
      this.pictures.prefetch(item.id, this.stage.screen, { whole: this.whole });
    }
  }

  // Puts the first item on the stage; true where it is there at once.
  #present() {
    if (this.inGrid) return false;
    const item = this.ahead[0];
    if (!item) {
      this.stage.show(null);
      this.shown = null;
      if (this.left === 0 && !this.fetching) this.note('Nothing is left for you here.\nThank you. U takes the last decision back.');
      return false;
    }
    const entry = this.pictures.prefetch(item.id, this.stage.screen, { whole: this.whole });
    if (entry.error) {
      if ([401, 403].includes(entry.error.status) || !entry.error.status) return this.#retry(item, entry.error);
      this.ahead.shift(); // it cannot be shown, so it cannot be judged
      this.pictures.release(item.id);
      this.#sync('refused', this.outbox.waiting.length, entry.error.message);
      this.#more();
      return this.#present();
    }
    if (!entry.made) {
      entry.promise.then(() => { if (this.ahead[0] === item && this.shown !== item) this.#present(); });
      this.stage.show(null);
      this.shown = null;
      this.note('Loading …');
      return false;
    }
    this.note('');
    this.stage.before = false;
    this.stage.show(entry.made);
    this.shown = item;
    this.shownAt = performance.now();
    if (entry.made.whole !== this.whole) this.#look(item);
    return true;
  }

  #retry(item, error) {
    if (error.status) this.note(error.message);
    else this.note('The server does not answer.\nYour decisions are kept here and sent when it does.');
    setTimeout(() => {
      for (const other of this.ahead) if (this.pictures.known.get(other.id)?.error) this.pictures.release(other.id);
      if (this.ahead[0] === item) this.#present();
      this.#prefetch();
    }, 1500);
    return false;
  }

  #row(item, fields) {
    this.sequence += 1;
    return {
      id: crypto.randomUUID?.() ?? `${this.session}-${this.sequence}`.slice(-64), item: item.id, decided_at: Date.now() / 1000,
      session: this.session, sequence: this.sequence, ...fields,
    };
  }

  decide(verdict, reason = null, pressedAt = performance.now()) {
    const item = this.shown;
    if (!item || this.inGrid) return;
    const decision = this.#row(item, {
      kind: 'verdict', verdict, reason, milliseconds: Math.max(0, Math.round(pressedAt - this.shownAt)), picture: this.stage.made.digest, mode: 'single',
    });
    this.ahead.shift();
    const ready = this.#present();
    const drawn = performance.now() - pressedAt;
    this.history.push({ decision, item, group: null });
    this.outbox.add(decision, item);
    const entry = { drawn, painted: null, ready };
    this.latencies.push(entry);
    requestAnimationFrame(() => {
      const channel = new MessageChannel(); // its message comes after the frame is painted
      channel.port1.onmessage = () => { entry.painted = performance.now() - pressedAt; };
      channel.port2.postMessage(null);
    });
    this.#tidy();
    this.#openReasons(verdict === 'rejected' ? decision : null, reason);
    this.#undone();
    this.#more();
  }

  reason(name) {
    const decision = this.rejected;
    if (!decision || this.given.has(name)) return;
    this.given.add(name);
    this.outbox.add(this.#row({ id: decision.item }, { kind: 'reason', reason: name, about: decision.id }));
    this.#markReasons();
  }

  undo() {
    const last = this.history.pop();
    if (!last) return;
    const group = [last];
    while (last.group && this.history.at(-1)?.group === last.group) group.unshift(this.history.pop());
    for (const { decision, item } of group) {
      this.outbox.add(this.#row(item, { kind: 'undo', about: decision.id }));
    }
    this.#openReasons(null);
    this.#undone();
    if (last.group) {
      this.#enterGrid(group.map((entry) => entry.item), Object.fromEntries(group.map(({ decision }) => [decision.item, decision.verdict])));
      return;
    }
    if (this.inGrid) this.#leaveGrid();
    this.ahead = [last.item, ...this.ahead.filter((item) => item.id !== last.item.id)];
    this.#present();
  }

  // Pictures of long-gone items are let go; their latest stay for undo.
  #tidy() {
    const old = this.history.at(-1 - BEHIND)?.item.id;
    if (old && !this.ahead.some((item) => item.id === old)) this.pictures.release(old);
  }

  async #look(item) {
    const made = await this.pictures.again(item.id, this.stage.screen, { whole: this.whole }).catch(() => null);
    if (made && this.shown === item) this.stage.show(made);
  }

  async #sharpen(rect) {
    const item = this.shown;
    if (!item) return;
    const made = await this.pictures.again(item.id, this.stage.screen, { rect }).catch(() => null);
    if (made && this.shown === item) this.stage.show(made, this.stage.rect);
  }

  zoom() {
    this.whole = !this.whole;
    element('zoom').setAttribute('aria-pressed', !this.whole);
    if (this.shown) this.#look(this.shown);
  }

  outline() {
    this.stage.outlined = !this.stage.outlined;
    element('outline').setAttribute('aria-pressed', this.stage.outlined);
    this.stage.draw();
  }

  blink(before) {
    (this.inGrid ? this.grid : this.stage).blink(before);
    for (const id of ['blink', 'grid-blink']) element(id).classList.toggle('pressed', before);
  }

  async toggleGrid() {
    if (this.inGrid) {
      this.#leaveGrid();
      await this.#more();
      this.#present();
    } else await this.#enterGrid();
  }

  async #enterGrid(items = null, verdicts = {}) {
    this.inGrid = true;
    this.#faces();
    this.note('Loading …');
    if (!items) {
      await this.outbox.flush();
      const answer = await this.#patiently(() => post('next', { count: this.grid.size, holding: this.outbox.waiting.map((row) => row.item).slice(-400), mode: 'grid' })).catch((error) => this.note(error.message));
      if (!answer || !this.inGrid) return;
      items = answer.items;
      this.#progress(answer.progress);
    }
    // what is in the grid is not ahead any more: a picture belongs to one place
    const here = new Set(items.map((item) => item.id));
    for (const item of this.ahead) if (here.has(item.id)) this.pictures.release(item.id);
    this.ahead = this.ahead.filter((item) => !here.has(item.id));
    this.note(items.length ? '' : 'There is nothing of which the discriminator is sure.\nG goes back to one at a time.');
    this.shownAt = performance.now();
    await this.grid.show(items, verdicts);
  }

  #leaveGrid() {
    this.grid.clear();
    this.inGrid = false;
    this.left = null;
    this.#faces();
    this.note('');
  }

  #faces() {
    element('mode').setAttribute('aria-pressed', this.inGrid);
    for (const id of ['stage', 'single-keys']) element(id).hidden = this.inGrid;
    for (const id of ['grid', 'grid-keys']) element(id).hidden = !this.inGrid;
    for (const id of ['zoom', 'outline']) element(id).disabled = this.inGrid;
    this.#openReasons(null);
  }

  commit() {
    if (!this.inGrid || !this.grid.ready) return;
    const page = this.grid.decided();
    const milliseconds = Math.round((performance.now() - this.shownAt) / Math.max(1, page.length));
    const group = crypto.randomUUID?.() ?? String(Date.now());
    for (const { item, verdict, digest } of page) {
      const decision = this.#row(item, { kind: 'verdict', verdict, milliseconds, picture: digest, mode: 'grid' });
      this.history.push({ decision, item, group });
      this.outbox.add(decision, item, group);
    }
    this.#undone();
    this.#enterGrid();
  }

  note(text) {
    element('note').hidden = !text;
    element('note').textContent = text;
  }

  #progress({ items, decided }) {
    const bar = element('progress');
    bar.setAttribute('aria-valuemax', items);
    bar.setAttribute('aria-valuenow', decided);
    bar.firstElementChild.style.width = `${items ? (100 * decided) / items : 0}%`;
    element('count').textContent = `${decided.toLocaleString('en')} of ${items.toLocaleString('en')}`;
  }

  #sync(state, count, why = '') {
    const words = { saved: 'saved', sending: `sending ${count}`, waiting: `${count} kept here until the server answers`, refused: `not taken: ${why}` };
    element('sync').dataset.state = state;
    element('sync').textContent = words[state];
  }

  #undone() {
    for (const id of ['undo', 'grid-undo']) element(id).disabled = !this.history.length;
  }

  #reasons() {
    for (const [index, name] of this.me.reasons.entries()) {
      const button = Object.assign(document.createElement('button'), { type: 'button' });
      button.dataset.reason = name;
      button.append(`${REASONS[name] ?? name} `, Object.assign(document.createElement('kbd'), { textContent: index + 1 }));
      button.addEventListener('click', () => this.reason(name));
      element('reasons').append(button);
    }
  }

  #openReasons(decision, reason = null) {
    this.rejected = decision;
    this.given = new Set(reason ? [reason] : []);
    element('reasons').classList.toggle('open', Boolean(decision));
    element('reasons').firstElementChild.textContent = 'The last one was rejected:';
    this.#markReasons();
  }

  #markReasons() {
    for (const button of element('reasons').querySelectorAll('button')) button.setAttribute('aria-pressed', this.given.has(button.dataset.reason));
  }
}

const desk = new Desk();
window.desk = desk;

function press(id) {
  element(id).classList.add('pressed');
  setTimeout(() => element(id).classList.remove('pressed'), 90);
}

function verdict(name, event) {
  press(name);
  // the event's own time: what the browser did before it got here counts, too
  desk.decide(name, null, event?.timeStamp || performance.now());
}

addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || element('sheet').open) return;
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const digit = /^Digit([1-5])$/.exec(event.code)?.[1];
  if (event.repeat && name !== 'b') { // a key that is held decides once
    if ([' ', 'Enter', 'Backspace', 'ArrowLeft', 'ArrowRight'].includes(name)) event.preventDefault();
    return;
  }
  const onTile = event.target.closest?.('.tile');
  if (name === 'b') desk.blink(true);
  else if (name === 'u' || name === 'Backspace') desk.undo();
  else if (name === 'g') desk.toggleGrid();
  else if (name === '?' || name === 'h') element('sheet').showModal();
  else if (desk.inGrid) {
    if (name === 'Enter') desk.commit();
    else if (onTile && name.startsWith('Arrow')) (name === 'ArrowLeft' || name === 'ArrowUp' ? onTile.previousElementSibling : onTile.nextElementSibling)?.focus();
    else return;
  } else if (name === 'a' || name === 'ArrowRight') verdict('accepted', event);
  else if (name === 'x' || name === 'ArrowLeft') verdict('rejected', event);
  else if (name === ' ') verdict('unsure', event);
  else if (digit && event.shiftKey) desk.decide('rejected', desk.me?.reasons[digit - 1], event.timeStamp);
  else if (digit) desk.reason(desk.me?.reasons[digit - 1]);
  else if (name === 'z') desk.zoom();
  else if (name === 'm') desk.outline();
  else return;
  event.preventDefault();
});
addEventListener('keyup', (event) => { if (event.key.toLowerCase() === 'b') desk.blink(false); });
addEventListener('blur', () => desk.blink(false));

for (const name of ['accepted', 'rejected', 'unsure']) element(name).addEventListener('click', (event) => verdict(name, event));
for (const id of ['undo', 'grid-undo']) element(id).addEventListener('click', () => desk.undo());
for (const id of ['blink', 'grid-blink']) {
  element(id).addEventListener('pointerdown', () => desk.blink(true));
  for (const name of ['pointerup', 'pointerleave', 'pointercancel']) element(id).addEventListener(name, () => desk.blink(false));
  element(id).addEventListener('contextmenu', (event) => event.preventDefault());
}
element('commit').addEventListener('click', () => desk.commit());
element('zoom').addEventListener('click', () => desk.zoom());
element('outline').addEventListener('click', () => desk.outline());
element('mode').addEventListener('click', () => desk.toggleGrid());
element('help').addEventListener('click', () => element('sheet').showModal());
// a button that keeps the focus would take the space bar for itself
document.addEventListener('click', (event) => { if (event.target.closest('button:not(.tile)')) document.activeElement?.blur(); });
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => desk.stage.draw());

desk.start();
