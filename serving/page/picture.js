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
    // photo and patches must be converted alike, and patches carry the photo's profile only where it is one of RGB
    const colorSpaceConversion = (await hasOwnProfile(blob)) ? "default" : "none";
    const levels = [await createImageBitmap(blob, { colorSpaceConversion })];
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

const HEAD_BYTES = 1 << 18;

/** Whether a PNG, JPEG or WebP file has an ICC profile of RGB, which the server puts into its patches, too. */
async function hasOwnProfile(blob) {
  const head = new TextDecoder("latin1").decode(await blob.slice(0, HEAD_BYTES).arrayBuffer());
  if (head.startsWith("\x89PNG")) {
    // by its colour type: a grey picture's profile is a grey one; a cICP chunk would win over the profile
    return (head.charCodeAt(25) & 2) !== 0 && head.includes("iCCP") && !head.includes("cICP");
  }
  if (head.startsWith("RIFF")) return head.includes("ICCP");
  // after the marker the number of the part and of all parts, then the profile, whose byte 16 begins the colour space
  const start = head.indexOf("ICC_PROFILE\0");
  return start >= 0 && head.slice(start + 30, start + 34) === "RGB ";
}
