/**
 * The mask as the list of what was drawn. It has no pixels until somebody asks: the screen draws the list at its own zoom, the server gets a
 * crop at the photo's. Coordinates are photo pixels and may lie beyond the edge.
 *
 * An operation is one of
 *   {kind: "stroke", erase, size, points: [x, y, x, y, ...]}    a round brush along a line
 *   {kind: "area", erase, points: [...]}                        a closed loop, filled
 *   {kind: "bitmap", x, y, bitmap, blob, replace}               pixels whose alpha is the mask, added to it or in its place
 *   {kind: "invert"} and {kind: "clear"}
 */

import { dilate } from "./morphology.js";

export class Mask {
  /** @param {number} width @param {number} height of the photo */
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.operations = [];
    this.undone = [];
  }

  /** Whether nothing is drawn since the last clear; an invert counts as something. */
  get empty() {
    return effective(this.operations).length === 0;
  }

  add(operation) {
    this.operations.push(operation);
    this.undone = [];
  }

  undo() {
    const last = this.operations.pop();
    if (last) this.undone.push(last);
    return Boolean(last);
  }

  redo() {
    const next = this.undone.pop();
    if (next) this.operations.push(next);
    return Boolean(next);
  }

  /** Hand the drawing over, and begin anew. */
  take() {
    const taken = this.operations;
    this.operations = [];
    this.undone = [];
    return taken;
  }

  /** Put operations (of a cancelled or undone erase) before whatever was drawn since. */
  giveBack(operations) {
    this.operations = [...operations, ...this.operations];
  }

  /** The pixels in the smallest box around them: `{x, y, width, height, alpha: Uint8Array}` of 0 and 255, or null where nothing is. */
  raster(operations = this.operations) {
    const box = bounds(operations, this.width, this.height);
    if (!box) return null;
    const canvas = new OffscreenCanvas(box.width, box.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.translate(-box.x, -box.y);
    paint(context, operations, "#fff", this);
    const { data } = context.getImageData(0, 0, box.width, box.height);
    const alpha = new Uint8Array(box.width * box.height);
    for (let i = 0; i < alpha.length; i++) alpha[i] = data[4 * i + 3] > 127 ? 255 : 0;
    return trimmed({ ...box, alpha });
  }

  /** The mask as PNG, white on black: `{blob, x, y}` of the smallest box, or of the whole photo; null where nothing is. */
  async png(operations = this.operations, whole = false) {
    const part = this.raster(operations);
    if (!part) return null;
    const place = whole ? { x: 0, y: 0, width: this.width, height: this.height } : part;
    const canvas = new OffscreenCanvas(place.width, place.height);
    const context = canvas.getContext("2d");
    context.fillRect(0, 0, place.width, place.height);
    context.putImageData(picture(part, true), part.x - place.x, part.y - place.y);
    return { blob: await canvas.convertToBlob({ type: "image/png" }), x: place.x, y: place.y };
  }

  /** Make the mask larger by some pixels all around (smaller where negative), as one operation. */
  async grow(pixels) {
    const part = this.raster();
    if (!part) return false;
    const grown = dilate(part, pixels, this.width, this.height);
    if (grown) this.add(await bitmapOperation(picture(grown, false), grown.x, grown.y, true));
    else this.add({ kind: "clear" });
    return true;
  }

  /** Add a mask picture of any size to it: its luminance, or its alpha where one colour is all that it has; over 127 is mask. */
  async load(blob) {
    const bitmap = await createImageBitmap(blob);
    const canvas = new OffscreenCanvas(this.width, this.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = false;
    context.drawImage(bitmap, 0, 0, this.width, this.height);
    bitmap.close();
    const image = context.getImageData(0, 0, this.width, this.height);
    const alpha = maskOf(image.data);
    const part = trimmed({ x: 0, y: 0, width: this.width, height: this.height, alpha });
    if (!part) return null;
    return bitmapOperation(picture(part, false), part.x, part.y, false);
  }
}

/** Draw operations with one colour; the context's transform maps photo pixels to its own. */
export function paint(context, operations, colour, size) {
  context.fillStyle = context.strokeStyle = colour;
  context.lineCap = context.lineJoin = "round";
  for (const operation of effective(operations)) {
    context.globalCompositeOperation = operation.erase ? "destination-out" : "source-over";
    if (operation.kind === "invert") {
      context.globalCompositeOperation = "xor";
      context.fillRect(0, 0, size.width, size.height);
    } else if (operation.kind === "bitmap") {
      context.imageSmoothingEnabled = false;
      context.drawImage(operation.bitmap, operation.x, operation.y);
      if (colour !== "#fff") tint(context, operation, colour);
    } else {
      paintShape(context, operation);
    }
  }
  context.globalCompositeOperation = "source-over";
}

function tint(context, operation, colour) {
  context.globalCompositeOperation = "source-atop";
  context.fillStyle = colour;
  context.fillRect(operation.x, operation.y, operation.bitmap.width, operation.bitmap.height);
}

function paintShape(context, { kind, size, points }) {
  context.beginPath();
  context.moveTo(points[0], points[1]);
  for (let i = 2; i < points.length; i += 2) context.lineTo(points[i], points[i + 1]);
  if (kind === "area") {
    context.closePath();
    context.fill();
    return;
  }
  context.lineWidth = size;
  context.stroke();
  // a line without length has no caps
  context.beginPath();
  context.arc(points[0], points[1], size / 2, 0, 2 * Math.PI);
  context.fill();
}

/** What still matters: from the last operation that starts anew. */
function effective(operations) {
  for (let i = operations.length - 1; i >= 0; i--) {
    if (operations[i].kind === "clear") return operations.slice(i + 1);
    if (operations[i].replace) return operations.slice(i);
  }
  return operations;
}

/** The smallest box inside the photo that holds all that operations may cover, or null. */
export function bounds(operations, width, height) {
  let [x0, y0, x1, y1] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const operation of effective(operations)) {
    if (operation.kind === "invert") return { x: 0, y: 0, width, height };
    if (operation.erase) continue;
    const margin = operation.kind === "stroke" ? operation.size / 2 + 1 : 1;
    const points =
      operation.kind === "bitmap"
        ? [operation.x, operation.y, operation.x + operation.bitmap.width, operation.y + operation.bitmap.height]
        : operation.points;
    for (let i = 0; i < points.length; i += 2) {
      x0 = Math.min(x0, points[i] - margin);
      x1 = Math.max(x1, points[i] + margin);
      y0 = Math.min(y0, points[i + 1] - margin);
      y1 = Math.max(y1, points[i + 1] + margin);
    }
  }
  x0 = Math.max(0, Math.floor(x0));
  y0 = Math.max(0, Math.floor(y0));
  x1 = Math.min(width, Math.ceil(x1));
  y1 = Math.min(height, Math.ceil(y1));
  return x1 > x0 && y1 > y0 ? { x: x0, y: y0, width: x1 - x0, height: y1 - y0 } : null;
}

/** A bitmap operation from image data whose alpha is the mask; it carries a PNG too, so that the session can be kept. */
async function bitmapOperation(image, x, y, replace) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  const blob = await canvas.convertToBlob({ type: "image/png" });
  return { kind: "bitmap", x, y, bitmap: await createImageBitmap(canvas), blob, replace };
}

function picture({ width, height, alpha }, opaque) {
  const image = new ImageData(width, height);
  const words = new Uint32Array(image.data.buffer);
  const [on, off] = opaque ? [0xffffffff, 0xff000000] : [0xffffffff, 0];
  for (let i = 0; i < alpha.length; i++) words[i] = alpha[i] ? on : off;
  return image;
}

/** As the server reads a mask: luminance, or alpha where all that is visible has one colour and alpha differs. */
function maskOf(data) {
  const words = new Uint32Array(data.buffer);
  const first = words.find((word) => word >>> 24) ?? 0;
  let oneColour = true;
  let oneAlpha = true;
  for (const word of words) {
    if (word >>> 24 && (word ^ first) & 0xffffff) oneColour = false;
    if (word >>> 24 !== words[0] >>> 24) oneAlpha = false;
    if (!oneColour && !oneAlpha) break;
  }
  const byAlpha = oneColour && !oneAlpha;
  const alpha = new Uint8Array(words.length);
  for (let i = 0, j = 0; i < alpha.length; i++, j += 4) {
    const value = byAlpha ? data[j + 3] : (data[j] * 299 + data[j + 1] * 587 + data[j + 2] * 114) / 1000;
    alpha[i] = value > 127 ? 255 : 0;
  }
  return alpha;
}

function trimmed({ x, y, width, height, alpha }) {
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let row = 0, i = 0; row < height; row++) {
    for (let column = 0; column < width; column++, i++) {
      if (!alpha[i]) continue;
      if (column < left) left = column;
      if (column > right) right = column;
      if (row < top) top = row;
      bottom = row;
    }
  }
  if (bottom < 0) return null;
  const [w, h] = [right - left + 1, bottom - top + 1];
  const cut = new Uint8Array(w * h);
  for (let row = 0; row < h; row++) cut.set(alpha.subarray((row + top) * width + left, (row + top) * width + right + 1), row * w);
  return { x: x + left, y: y + top, width: w, height: h, alpha: cut };
}
