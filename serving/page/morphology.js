/** Masks made larger or smaller by a disc. */

/**
 * A mask `{x, y, width, height, alpha}` of 0 and 255, grown by `radius` pixels (shrunk where negative) and kept inside the photo.
 * Null where nothing is left.
 */
export function dilate(part, radius, photoWidth, photoHeight) {
  const margin = Math.max(0, radius) + 1;
  const x = Math.max(0, part.x - margin);
  const y = Math.max(0, part.y - margin);
  const width = Math.min(photoWidth, part.x + part.width + margin) - x;
  const height = Math.min(photoHeight, part.y + part.height + margin) - y;
  const inside = new Uint8Array(width * height);
  for (let row = 0; row < part.height; row++) {
    const from = part.alpha.subarray(row * part.width, (row + 1) * part.width);
    inside.set(from, (row + part.y - y) * width + part.x - x);
  }
  const growing = radius > 0;
  const distances = squaredDistances(inside, width, height, growing ? 255 : 0);
  const alpha = new Uint8Array(width * height);
  const limit = radius * radius;
  let any = false;
  for (let i = 0; i < alpha.length; i++) {
    if (growing ? distances[i] > limit : distances[i] <= limit) continue;
    alpha[i] = 255;
    any = true;
  }
  return any ? { x, y, width, height, alpha } : null;
}

/**
 * The squared Euclidean distance of every pixel to the nearest one with `value`: Felzenszwalb and Huttenlocher, "Distance Transforms of
 * Sampled Functions" (2012), section 2: lower envelopes of parabolas, columns first, then rows.
 */
function squaredDistances(pixels, width, height, value) {
  const far = (width + height) ** 2;
  const distances = new Float64Array(width * height);
  for (let i = 0; i < distances.length; i++) distances[i] = pixels[i] === value ? 0 : far;
  const longest = Math.max(width, height);
  const line = new Float64Array(longest);
  const vertex = new Int32Array(longest);
  const border = new Float64Array(longest + 1);
  for (let column = 0; column < width; column++) transform(distances, column, width, height, line, vertex, border);
  for (let row = 0; row < height; row++) transform(distances, row * width, 1, width, line, vertex, border);
  return distances;
}

function transform(values, start, step, count, line, vertex, border) {
  for (let i = 0; i < count; i++) line[i] = values[start + i * step];
  let last = 0;
  vertex[0] = 0;
  border[0] = -Infinity;
  border[1] = Infinity;
  for (let q = 1; q < count; q++) {
    let meets = crossing(line, q, vertex[last]);
    while (meets <= border[last]) meets = crossing(line, q, vertex[--last]);
    vertex[++last] = q;
    border[last] = meets;
    border[last + 1] = Infinity;
  }
  for (let q = 0, k = 0; q < count; q++) {
    while (border[k + 1] < q) k++;
    values[start + q * step] = (q - vertex[k]) ** 2 + line[vertex[k]];
  }
}

function crossing(line, q, p) {
  return (line[q] + q * q - (line[p] + p * p)) / (2 * q - 2 * p);
}
