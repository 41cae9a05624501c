/** The help sheet, and the question for a key. */

export function toggleHelp() {
  const sheet = document.getElementById("help-sheet");
  if (sheet.open) sheet.close();
  else sheet.showModal();
}

/** Closed by H, ? and a press beside it, besides Esc. */
export function prepareHelp() {
  const sheet = document.getElementById("help-sheet");
  sheet.addEventListener("keydown", (event) => {
    if (["h", "?"].includes(event.key.toLowerCase())) {
      event.preventDefault();
      event.stopPropagation();
      sheet.close();
    }
  });
  sheet.addEventListener("click", (event) => event.target === sheet && sheet.close());
}

/** @returns {Promise<string|null>} the key that was entered */
export function askKey() {
  const dialog = document.getElementById("key-dialog");
  const field = dialog.querySelector("input");
  field.value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "use" ? field.value.trim() || null : null), { once: true });
  });
}
