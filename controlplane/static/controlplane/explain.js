"use strict";
// Copies the answer to send.
(() => {
  for (const button of document.querySelectorAll("[data-copy-answer]")) {
    button.addEventListener("click", async () => {
      const told = button.closest("section").querySelector("[data-copied]");
      const text = document.getElementById(button.dataset.copyAnswer).textContent;
      try {
        await navigator.clipboard.writeText(text);
        told.textContent = "Copied.";
      } catch {
        told.textContent = "The browser did not allow copying. Select the text and copy it.";
      }
    });
  }
})();
