// A worker: fetches the three pictures of an item, finds the mask's box, and cuts and scales what is to be seen, so that the page only draws.

const SCAN = 768; // longer side at which the mask is looked through
const CONTEXT = 2.4; // sides of the view over sides of the mask's box
const LEAST = 160; // pixels of the photo that a view has at least
const AT_ONCE = 3;

const kept = new Map(); // id -> { pictures, box, size, digest }
const waiting = [];
let running = 0;

async function fetched(base, key, id, role) {
  const address = new URL(`pictures/${role}?item=${encodeURIComponent(id)}`, base);
  const response = await fetch(address, { headers: { authorization: `Bearer ${key}` } });
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    throw Object.assign(new Error(body.detail ?? `the server answered ${response.status}`), { status: response.status });
  }
  return { blob: await response.blob(), digest: response.headers.get('etag')?.replaceAll('"', '') ?? null };
}

function pixelsOf(mask, rect, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.fillStyle = '#000'; // clear parts of a mask are not masked
  context.fillRect(0, 0, width, height);
  context.drawImage(mask, rect.x, rect.y, rect.width, rect.height, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

function boxOf(mask) {
  const scale = Math.min(1, SCAN / Math.max(mask.width, mask.height));
  const [width, height] = [Math.max(1, Math.round(mask.width * scale)), Math.max(1, Math.round(mask.height * scale))];
  const data = pixelsOf(mask, { x: 0, y: 0, width: mask.width, height: mask.height }, width, height);
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at += 4) {
      if (data[at] > 63) { // a thin part is grey once it is made small
        left = Math.min(left, x); right = Math.max(right, x);
        top = Math.min(top, y); bottom = Math.max(bottom, y);
      }
    }
  }
  if (right < 0) return { x: 0, y: 0, width: 1, height: 1 };
  return { x: left / width, y: top / height, width: (right - left + 1) / width, height: (bottom - top + 1) / height };
}

// The part of the photo around the mask's box that fills a screen of this shape; the whole photo where `whole`.
function viewOf(size, box, screen, whole) {
  if (whole) return { x: 0, y: 0, width: size.width, height: size.height };
  const shape = screen.width / screen.height;
  let width = Math.max(box.width * size.width * CONTEXT, LEAST);
  let height = Math.max(box.height * size.height * CONTEXT, LEAST);
  if (width / height < shape) width = height * shape; else height = width / shape;
  width = Math.min(width, size.width); height = Math.min(height, size.height);
  const middle = { x: (box.x + box.width / 2) * size.width, y: (box.y + box.height / 2) * size.height };
  const x = Math.min(Math.max(middle.x - width / 2, 0), size.width - width);
  const y = Math.min(Math.max(middle.y - height / 2, 0), size.height - height);
  return { x, y, width, height };
}

function cut(picture, rect, size, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  const [across, down] = [picture.width / size.width, picture.height / size.height];
  context.drawImage(picture, rect.x * across, rect.y * down, rect.width * across, rect.height * down, 0, 0, width, height);
  return canvas.transferToImageBitmap();
}

function outlined(mask, rect, size, width, height) {
  const [across, down] = [mask.width / size.width, mask.height / size.height];
  const part = { x: rect.x * across, y: rect.y * down, width: rect.width * across, height: rect.height * down };
  const data = pixelsOf(mask, part, width, height);
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && data[(y * width + x) * 4] > 127;
  const image = new ImageData(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const here = inside(x, y);
      const edge = here !== inside(x - 1, y) || here !== inside(x, y - 1) || here !== inside(x + 1, y) || here !== inside(x, y + 1);
      // bright inside the line, dark outside: seen on anything
      if (edge) image.data.set(here ? [255, 236, 92, 255] : [0, 0, 0, 190], (y * width + x) * 4);
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas.transferToImageBitmap();
}

async function decoded(blobs) {
  const names = ['source', 'erased', 'mask'];
  const bitmaps = await Promise.all(names.map((name) => createImageBitmap(blobs[name])));
  return Object.fromEntries(names.map((name, index) => [name, bitmaps[index]]));
}

async function load({ id, base, key, screen, whole, rect }) {
  let entry = kept.get(id);
  if (!entry) {
    const [source, erased, mask] = await Promise.all(['source', 'erased', 'mask'].map((role) => fetched(base, key, id, role)));
    entry = { blobs: { source: source.blob, erased: erased.blob, mask: mask.blob }, digest: erased.digest };
    kept.set(id, entry);
  }
  const pictures = await decoded(entry.blobs);
  entry.size ??= { width: pictures.source.width, height: pictures.source.height };
  entry.box ??= boxOf(pictures.mask);
  const view = rect ?? viewOf(entry.size, entry.box, screen, whole);
  const scale = Math.min(1, screen.width / view.width, screen.height / view.height);
  const [width, height] = [Math.max(1, Math.round(view.width * scale)), Math.max(1, Math.round(view.height * scale))];
  const made = {
    before: cut(pictures.source, view, entry.size, width, height),
    after: cut(pictures.erased, view, entry.size, width, height),
    outline: outlined(pictures.mask, view, entry.size, width, height),
    rect: view, size: entry.size, digest: entry.digest, whole: Boolean(whole),
  };
  for (const picture of Object.values(pictures)) picture.close();
  return made;
}

async function work() {
  if (running >= AT_ONCE || !waiting.length) return;
  const task = waiting.shift();
  running += 1;
  try {
    const made = await load(task);
    postMessage({ number: task.number, made }, [made.before, made.after, made.outline]);
  } catch (error) {
    postMessage({ number: task.number, error: error.message, status: error.status ?? 0 });
  }
  running -= 1;
  work();
}

onmessage = ({ data }) => {
  if (data.release) {
    kept.delete(data.release);
    return;
  }
  if (data.urgent) waiting.unshift(data); else waiting.push(data);
  work();
};
