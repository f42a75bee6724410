"use strict";
// The page that shows a secret once. Reloading opens the page of the credential and cannot create a second one. Leaving
// asks for confirmation until the secret is copied or the user has confirmed that it is stored.
(() => {
  const page = document.querySelector(".sg-secret");
  if (!page) return;
  history.replaceState(null, "", page.dataset.url);

  const stored = document.getElementById("stored");
  const status = document.getElementById("copied");
  const guard = (event) => {
    if (!stored.checked) event.preventDefault();
  };
  window.addEventListener("beforeunload", guard);

  const copyByHand = (element) => {
    // Without HTTPS, browsers have no clipboard API. Then the text is selected and copied with the older command.
    const range = document.createRange();
    range.selectNodeContents(element);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return document.execCommand("copy");
  };
  const copy = async (element) => {
    try {
      await navigator.clipboard.writeText(element.textContent);
      return true;
    } catch {
      return copyByHand(element);
    }
  };
  page.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const done = await copy(document.getElementById(button.dataset.copy));
    status.textContent = done ? "Copied." : "Copying failed. The text is selected, so press Ctrl+C.";
    if (done) stored.checked = true;
  });

  const tabs = [...page.querySelectorAll("[role=tab]")];
  const show = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
    chosen.focus();
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => show(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) show(tabs[(index + step + tabs.length) % tabs.length]);
    });
  });
})();
