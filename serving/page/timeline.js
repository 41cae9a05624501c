/**
 * Results in the order in which they were made, apart from the strokes. A step is one erase:
 * `{parent, operations, mask, request, results, chosen}`; its parent is the step on whose chosen result it works (null: the photo). A second
 * try of the same mask is a step with the same parent, so that undo leads from one try back to the other.
 */

export class Timeline {
  constructor() {
    this.steps = [];
    this.position = 0;
  }

  /** The step that is shown, or null for the photo as it came. */
  get head() {
    return this.position ? this.steps[this.position - 1] : null;
  }

  get canUndo() {
    return this.position > 0;
  }

  get canRedo() {
    return this.position < this.steps.length;
  }

  /** From the photo to what is shown: the steps whose chosen results lie on each other. */
  get chain() {
    const chain = [];
    for (let step = this.head; step; step = step.parent) chain.unshift(step);
    return chain;
  }

  /** Add a step; what was undone before is gone then. */
  add(step) {
    this.steps.length = this.position;
    this.steps.push(step);
    this.position++;
  }

  /** @returns the step that was taken back, or null */
  undo() {
    return this.position ? this.steps[--this.position] : null;
  }

  redo() {
    return this.position < this.steps.length ? this.steps[this.position++] : null;
  }

  /** Show another candidate of the head. Steps ahead that were made on the old one are gone then. */
  choose(index) {
    const head = this.head;
    if (!head || !head.results[index] || head.chosen === index) return false;
    head.chosen = index;
    const ahead = this.steps.slice(this.position);
    if (ahead.some((step) => step.parent === head)) this.steps.length = this.position;
    return true;
  }
}
