/** A picture that is drawn at any zoom: its pixels, and smaller copies of them, each half as wide as the one before. */

const LEAST_SIDE = 512;

export class Picture {
  /** @param {ImageBitmap[]} levels the picture, then its halves; x, y: where it lies on the photo */
  constructor(levels, x = 0, y = 0) {
    this.levels = levels;
    this.x = x;
    this.y = y;
    this.width = levels[0].width;
    this.height = levels[0].height;
  }

  /**
   * Decode a file, upright. The copies are made once, so that drawing a photo of 24 megapixels costs what the screen has pixels.
   * @throws {DOMException} this browser cannot read the file
   */
  static async decode(blob, x = 0, y = 0) {
    // photo and patches have the same numbers; a profile that only the photo carries would make their colours differ
    const levels = [await createImageBitmap(blob, { colorSpaceConversion: "none" })];
    for (;;) {
      const last = levels[levels.length - 1];
      if (Math.max(last.width, last.height) <= LEAST_SIDE) break;
      levels.push(
        await createImageBitmap(last, {
          resizeWidth: Math.max(1, last.width >> 1),
          resizeHeight: Math.max(1, last.height >> 1),
          resizeQuality: "medium",
        }),
      );
    }
    return new Picture(levels, x, y);
  }

  /** Draw into a context whose transform maps photo pixels to screen pixels at `scale`; beyond 3 x, pixels show as squares. */
  draw(context, scale) {
    let level = 0;
    while (level + 1 < this.levels.length && this.levels[level + 1].width >= this.width * scale) level++;
    context.imageSmoothingEnabled = scale < 3;
    context.imageSmoothingQuality = "medium";
    context.drawImage(this.levels[level], this.x, this.y, this.width, this.height);
  }

  close() {
    for (const level of this.levels) level.close();
  }
}
