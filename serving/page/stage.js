/**
 * The photo on the screen, in layers: frame (an element), photo and patches, the mask that waits, the mask that is drawn, the brush's ring.
 * Every canvas has the screen's size, whatever the photo's is, and is drawn again only when something on it changed.
 */

import { bounds, paint } from "./mask.js";
import { View } from "./view.js";

const FADE_MS = 260;

export class Stage {
  constructor(root, editor) {
    this.root = root;
    this.editor = editor;
    this.view = new View();
    this.live = null;
    this.original = false;
    this.split = null;
    this.cursor = null;
    this.layers = Object.fromEntries(["photo", "waiting", "mask"].map((name) => [name, root.querySelector(`canvas.${name}`)]));
    this.frame = root.querySelector(".frame");
    this.ring = root.querySelector(".ring");
    this.spinner = root.querySelector(".spinner");
    this.dirty = new Set();
    this.reduced = matchMedia("(prefers-reduced-motion: reduce)");
    new ResizeObserver(() => this.#resize()).observe(root);
    editor.addEventListener("photo", () => this.#photoChanged());
    editor.addEventListener("mask", () => this.redraw("mask"));
    editor.addEventListener("jobs", () => this.redraw("waiting"));
    editor.addEventListener("result", () => this.redraw("photo"));
    editor.addEventListener("settings", () => this.#placeRing());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw("mask", "waiting"));
  }

  redraw(...names) {
    if (!this.dirty.size) requestAnimationFrame(() => this.#draw());
    for (const name of names) this.dirty.add(name);
  }

  #all() {
    this.redraw("photo", "waiting", "mask");
    this.#placeRing();
  }

  /** Show the whole photo. */
  fit() {
    if (!this.editor.photo) return;
    const style = getComputedStyle(this.root);
    const inset = Object.fromEntries(["top", "right", "bottom", "left"].map((side) => [side, parseFloat(style.getPropertyValue(`--inset-${side}`)) || 0]));
    this.view.fit(this.editor.photo, this.#size(), inset);
    this.#all();
  }

  zoom(factor, x = this.#size().width / 2, y = this.#size().height / 2) {
    if (!this.editor.photo) return;
    this.view.zoom(factor, x, y);
    this.#all();
  }

  pan(dx, dy) {
    this.view.pan(dx, dy);
    this.#all();
  }

  /** Show the operation under the hand before it is finished; null ends that. */
  sketch(operation) {
    this.live = operation;
    this.redraw("mask");
  }

  /** Show the photo as it came while `on`. */
  showOriginal(on) {
    if (this.original === on) return;
    this.original = on;
    this.root.classList.toggle("original", on);
    this.redraw("photo");
  }

  /** Show the photo as it came left of `share` (0 to 1) of the photo's visible width; null ends that. */
  splitAt(share) {
    this.split = share;
    this.root.classList.toggle("split", share !== null);
    this.redraw("photo");
  }

  /** Put the ring at a point of the photo; null hides it. */
  point(x, y) {
    this.cursor = x === null ? null : [x, y];
    this.#placeRing();
  }

  /** Pan as little as it takes for a point of the photo to lie well inside the screen. */
  keepVisible(x, y) {
    const { width, height } = this.#size();
    const [sx, sy] = this.view.toScreen(x, y);
    const by = (at, limit) => Math.max(0, 48 - at) || Math.min(0, limit - 48 - at);
    const [dx, dy] = [by(sx, width), by(sy, height)];
    if (dx || dy) this.pan(dx, dy);
  }

  /** The visible part of the photo: `[left, right, top, bottom]` in screen pixels. */
  get span() {
    const { photo } = this.editor;
    const { width, height } = this.#size();
    const { x, y, scale } = this.view;
    return [Math.max(0, x), Math.min(width, x + photo.width * scale), Math.max(0, y), Math.min(height, y + photo.height * scale)];
  }

  #size() {
    return { width: this.root.clientWidth, height: this.root.clientHeight };
  }

  #photoChanged() {
    const { photo } = this.editor;
    if (photo && photo !== this.shown) this.fit();
    this.shown = photo;
    this.root.classList.toggle("filled", Boolean(photo));
    if (!photo) {
      this.splitAt(null);
      this.point(null);
    }
    this.#all();
  }

  #resize() {
    const ratio = devicePixelRatio;
    const { width, height } = this.#size();
    for (const canvas of Object.values(this.layers)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    if (this.view.fitted) this.fit();
    else this.#all();
  }

  #draw() {
    const dirty = this.dirty;
    this.dirty = new Set();
    if (dirty.has("photo")) this.#drawPhoto();
    if (dirty.has("mask")) this.#drawMask();
    if (dirty.has("waiting")) this.#drawWaiting();
  }

  #begin(canvas) {
    const context = canvas.getContext("2d");
    const ratio = devicePixelRatio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = 1;
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, canvas.width, canvas.height);
    const { scale, x, y } = this.view;
    context.setTransform(scale * ratio, 0, 0, scale * ratio, x * ratio, y * ratio);
    return [context, scale * ratio];
  }

  #drawPhoto() {
    const [context, scale] = this.#begin(this.layers.photo);
    const { photo, timeline } = this.editor;
    if (!photo) return;
    photo.picture.draw(context, scale);
    this.#placeFrame(photo);
    if (this.original) return;
    context.save();
    if (this.split !== null) this.#clipRight(context, photo);
    const now = performance.now();
    for (const step of timeline.chain) {
      const age = step.born === undefined || this.reduced.matches ? FADE_MS : now - step.born;
      context.globalAlpha = Math.min(1, age / FADE_MS);
      if (age < FADE_MS) requestAnimationFrame(() => this.redraw("photo"));
      step.results[step.chosen].picture?.draw(context, scale);
    }
    context.restore();
  }

  #clipRight(context, photo) {
    const [left, right] = this.span;
    const [x] = this.view.toPhoto(left + (right - left) * this.split, 0);
    context.beginPath();
    context.rect(x, 0, photo.width - x, photo.height);
    context.clip();
  }

  #drawMask() {
    const [context] = this.#begin(this.layers.mask);
    const { photo, mask } = this.editor;
    if (photo) this.#paint(context, this.live ? [...mask.operations, this.live] : mask.operations, photo);
  }

  #paint(context, operations, photo) {
    context.save();
    context.beginPath();
    context.rect(0, 0, photo.width, photo.height);
    context.clip();
    paint(context, operations, getComputedStyle(this.root).getPropertyValue("--mask").trim(), photo);
    context.restore();
  }

  #drawWaiting() {
    const { jobs, photo } = this.editor;
    const [context] = this.#begin(this.layers.waiting);
    this.spinner.hidden = !jobs.length;
    if (!photo || !jobs.length) return;
    for (const job of jobs) this.#paint(context, job.operations, photo);
    const box = bounds(jobs[0].operations, photo.width, photo.height) ?? { x: 0, y: 0, width: photo.width, height: photo.height };
    const [x, y] = this.view.toScreen(box.x + box.width / 2, box.y + box.height / 2);
    this.spinner.style.transform = `translate(${x}px, ${y}px)`;
  }

  #placeFrame(photo) {
    const { x, y, scale } = this.view;
    Object.assign(this.frame.style, {
      transform: `translate(${x}px, ${y}px)`,
      width: `${photo.width * scale}px`,
      height: `${photo.height * scale}px`,
    });
  }

  #placeRing() {
    const { tool, brush } = this.editor.settings;
    const shown = this.cursor && this.editor.photo;
    this.ring.hidden = !shown;
    if (!shown) return;
    const [x, y] = this.view.toScreen(...this.cursor);
    const round = tool === "brush" || tool === "unbrush";
    this.ring.classList.toggle("cross", !round);
    this.ring.style.setProperty("--size", `${round ? brush : 24}px`);
    this.ring.style.transform = `translate(${x}px, ${y}px)`;
  }
}
