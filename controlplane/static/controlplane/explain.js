"use strict";
// Writes the local time beside each instant, and copies the answer to send.
(() => {
  for (const time of document.querySelectorAll("time[data-local]")) {
    const at = new Date(time.dateTime);
    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    if (!zone || zone === "UTC" || Number.isNaN(at.getTime())) continue;
    const local = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium", timeZone: zone });
    time.append(` (${local} ${zone})`);
  }
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
