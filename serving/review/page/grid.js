// Many results at once, each set to what the discriminator thinks; a click turns one over, and the page is saved as a whole.

const TILE = 320;

export class Grid {
  constructor(element, pictures) {
    this.element = element;
    this.pictures = pictures;
    this.items = [];
    this.before = false;
  }

  // How many tiles fill the screen without scrolling, about.
  get size() {
    return innerWidth < 720 ? 8 : 24;
  }

  async show(items, verdicts = {}) {
    this.clear();
    this.items = items.map((item) => ({ item, verdict: verdicts[item.id] ?? item.preset }));
    const screen = { width: TILE, height: TILE };
    await Promise.all(this.items.map(async (entry, index) => {
      const tile = document.createElement('button');
      tile.type = 'button';
      tile.className = 'tile';
      const canvas = Object.assign(document.createElement('canvas'), { width: TILE, height: TILE });
      const word = document.createElement('span');
      tile.append(canvas, word);
      Object.assign(entry, { tile, canvas, word });
      this.#mark(entry);
      tile.addEventListener('click', () => {
        entry.verdict = entry.verdict === 'accepted' ? 'rejected' : 'accepted';
        this.#mark(entry);
      });
      this.element.append(tile);
      const loading = this.pictures.prefetch(`${entry.item.id}`, screen);
      await loading.promise;
      if (this.items[index] !== entry) return;
      entry.made = loading.made;
      entry.error = loading.error;
      this.#draw(entry);
    }));
    this.element.querySelector('button')?.focus({ preventScroll: true });
  }

  get ready() {
    return this.items.length > 0 && this.items.every((entry) => entry.made || entry.error);
  }

  // What is on the page and can be seen: [{ item, verdict, digest }].
  decided() {
    return this.items.filter((entry) => entry.made).map(({ item, verdict, made }) => ({ item, verdict, digest: made.digest }));
  }

  #mark({ tile, word, verdict, item }) {
    tile.dataset.verdict = verdict;
    tile.dataset.id = item.id;
    word.textContent = verdict === 'accepted' ? 'Accept' : 'Reject';
    tile.setAttribute('aria-pressed', verdict === 'accepted');
    tile.setAttribute('aria-label', `${item.id}: ${word.textContent}`);
  }

  #draw({ canvas, made }) {
    if (!made) return;
    const context = canvas.getContext('2d');
    const picture = this.before ? made.before : made.after;
    const scale = Math.max(TILE / picture.width, TILE / picture.height);
    const [width, height] = [picture.width * scale, picture.height * scale];
    context.imageSmoothingQuality = 'high';
    context.drawImage(picture, (TILE - width) / 2, (TILE - height) / 2, width, height);
  }

  blink(before) {
    if (this.before === before) return;
    this.before = before;
    for (const entry of this.items) this.#draw(entry);
  }

  clear() {
    for (const { item } of this.items) this.pictures.release(item.id);
    this.items = [];
    this.element.replaceChildren();
  }
}
