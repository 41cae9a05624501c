// The picture on the screen: after or before, on the place of the object or whole, closer and moved, with the mask's outline.

const CLOSEST = 24; // pixels of the photo across the screen at the closest

export class Stage {
  // wanted(rect): the stage shows this part of the photo and has it only coarsely
  constructor(canvas, tag, wanted) {
    this.canvas = canvas;
    this.tag = tag;
    this.context = canvas.getContext('2d', { alpha: false });
    this.wanted = wanted;
    this.made = null;
    this.rect = null; // the part of the photo on the screen
    this.before = false;
    this.outlined = false;
    this.timer = 0;
    this.#listen();
    new ResizeObserver(() => { if (this.#resize()) this.draw(); }).observe(canvas);
    this.#resize();
  }

  get screen() {
    return { width: this.canvas.width, height: this.canvas.height };
  }

  #resize() {
    const [width, height] = ['width', 'height'].map((side) => Math.max(1, Math.round(this.canvas.getBoundingClientRect()[side] * devicePixelRatio)));
    if (this.canvas.width === width && this.canvas.height === height) return false;
    Object.assign(this.canvas, { width, height });
    return true;
  }

  show(made, rect = null) {
    this.made = made;
    this.rect = rect ?? made?.rect ?? null;
    this.draw();
  }

  draw() {
    const { context, canvas, made, rect } = this;
    context.fillStyle = getComputedStyle(canvas.parentElement).backgroundColor;
    context.fillRect(0, 0, canvas.width, canvas.height);
    this.tag.hidden = !made;
    if (!made) return;
    const picture = this.before ? made.before : made.after;
    const to = this.#placed(rect);
    const scale = to.width / rect.width;
    const at = {
      x: to.x + (made.rect.x - rect.x) * scale, y: to.y + (made.rect.y - rect.y) * scale,
      width: made.rect.width * scale, height: made.rect.height * scale,
    };
    context.imageSmoothingQuality = 'high';
    context.drawImage(picture, at.x, at.y, at.width, at.height);
    if (this.outlined) {
      context.imageSmoothingEnabled = scale * made.rect.width < made.outline.width * 2;
      context.drawImage(made.outline, at.x, at.y, at.width, at.height);
      context.imageSmoothingEnabled = true;
    }
    this.tag.textContent = this.before ? 'Before' : 'After';
    this.tag.dataset.before = this.before;
  }

  // Where on the canvas a part of the photo comes, as large as it can be.
  #placed(rect) {
    const { width, height } = this.canvas;
    const scale = Math.min(width / rect.width, height / rect.height);
    const [w, h] = [rect.width * scale, rect.height * scale];
    return { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h };
  }

  blink(before) {
    if (this.before === before) return;
    this.before = before;
    this.draw();
  }

  zoomBy(factor, clientX, clientY) {
    if (!this.made) return;
    const { size } = this.made;
    const place = this.canvas.getBoundingClientRect();
    const to = this.#placed(this.rect);
    const pixel = { x: (clientX - place.left) * devicePixelRatio, y: (clientY - place.top) * devicePixelRatio };
    const share = { x: (pixel.x - to.x) / to.width, y: (pixel.y - to.y) / to.height };
    const width = Math.min(Math.max(this.rect.width * factor, Math.min(CLOSEST, size.width)), size.width * 1.2);
    const height = width * this.rect.height / this.rect.width;
    this.#moveTo({
      x: this.rect.x + share.x * (this.rect.width - width), y: this.rect.y + share.y * (this.rect.height - height), width, height,
    });
  }

  moveBy(dx, dy) {
    if (!this.made) return;
    const scale = this.rect.width / this.#placed(this.rect).width * devicePixelRatio;
    this.#moveTo({ ...this.rect, x: this.rect.x - dx * scale, y: this.rect.y - dy * scale });
  }

  #moveTo(rect) {
    const { size } = this.made;
    const kept = (value, length, whole) => (length >= whole ? (whole - length) / 2 : Math.min(Math.max(value, 0), whole - length));
    this.rect = { ...rect, x: kept(rect.x, rect.width, size.width), y: kept(rect.y, rect.height, size.height) };
    this.draw();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.wanted(this.rect), 120);
  }

  #listen() {
    const pointers = new Map();
    let moved = false;
    let spread = 0;
    const distance = () => {
      const [one, other] = [...pointers.values()];
      return Math.hypot(one.x - other.x, one.y - other.y);
    };
    this.canvas.addEventListener('pointerdown', (event) => {
      if (event.button > 1) return;
      this.canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, from: { x: event.clientX, y: event.clientY } });
      moved = pointers.size > 1;
      if (pointers.size === 2) spread = distance();
      this.blink(!moved); // held still it blinks, moved it drags
    });
    this.canvas.addEventListener('pointermove', (event) => {
      const at = pointers.get(event.pointerId);
      if (!at) return;
      const step = { x: event.clientX - at.x, y: event.clientY - at.y };
      if (!moved && Math.hypot(event.clientX - at.from.x, event.clientY - at.from.y) < 6) return;
      moved = true;
      this.blink(false);
      Object.assign(at, { x: event.clientX, y: event.clientY });
      if (pointers.size === 2) {
        const now = distance();
        const [one, other] = [...pointers.values()];
        this.zoomBy(spread / now, (one.x + other.x) / 2, (one.y + other.y) / 2);
        spread = now;
      } else this.moveBy(step.x, step.y);
    });
    for (const name of ['pointerup', 'pointercancel']) {
      this.canvas.addEventListener(name, (event) => {
        pointers.delete(event.pointerId);
        this.blink(false);
      });
    }
    this.canvas.addEventListener('wheel', (event) => {
      event.preventDefault();
      this.zoomBy(Math.exp(event.deltaY * (event.deltaMode ? 0.04 : 0.0015)), event.clientX, event.clientY);
    }, { passive: false });
    this.canvas.addEventListener('contextmenu', (event) => event.preventDefault());
  }
}
