/** Where the photo lies on the screen: `screen = photo * scale + offset`, in CSS pixels. */

const MOST_SCALE = 32;

export class View {
  constructor() {
    this.scale = 1;
    this.x = 0;
    this.y = 0;
    this.fitted = true;
  }

  /** Show the whole photo in the middle of what the panels leave free; small ones are enlarged up to twice. */
  fit(photo, stage, inset) {
    const width = Math.max(40, stage.width - inset.left - inset.right);
    const height = Math.max(40, stage.height - inset.top - inset.bottom);
    this.scale = Math.min(width / photo.width, height / photo.height, 2);
    this.x = inset.left + (width - photo.width * this.scale) / 2;
    this.y = inset.top + (height - photo.height * this.scale) / 2;
    this.least = this.scale / 4;
    this.fitted = true;
  }

  /** Zoom by a factor, with the photo under screen point (x, y) held in place. */
  zoom(factor, x, y) {
    const scale = Math.min(MOST_SCALE, Math.max(this.least ?? 0.01, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
  }

  toPhoto(x, y) {
    return [(x - this.x) / this.scale, (y - this.y) / this.scale];
  }

  toScreen(x, y) {
    return [x * this.scale + this.x, y * this.scale + this.y];
  }
}
