"use strict";
// What needs a hand, which is read every five seconds while the tab is visible.
(() => {
  const EVERY_MS = 5000;
  const PATIENCE_MS = 5000;
  const SLOWEST_MS = 40000;
  const frame = document.querySelector("[data-hands-frame]");
  if (!frame) return;
  let failures = 0;
  let over = false;
  // Nobody's choice of an end is taken away, and no line moves under a pointer or the focus.
  const isUsed = () => frame.querySelector("details[open]") || frame.contains(document.activeElement) || frame.matches(":hover");
  const stop = (text) => {
    const at = frame.querySelector("[data-live-at]");
    if (!at || at.dataset.stopped === text) return;
    at.dataset.stopped = text;
    at.textContent = text;
  };
  const read = async () => {
    if (document.hidden || isUsed()) return;
    const url = frame.querySelector("[data-hands]").dataset.hands;
    const asked = { headers: { "X-Requested-With": "fetch" }, signal: AbortSignal.timeout(PATIENCE_MS) };
    const [answer, body] = await fetch(url, asked).then(async (it) => [it, it.ok ? await it.text() : ""]).catch(() => [null, ""]);
    if (answer?.redirected || answer?.status === 403) {
      over = true;
      return stop("You are signed out. Reload to go on.");
    }
    failures = answer?.ok ? 0 : failures + 1;
    if (!answer?.ok) return stop("The server does not answer, so these lines are old.");
    if (!isUsed()) frame.innerHTML = body;
  };
  const loop = async () => {
    await read();
    if (!over) setTimeout(loop, Math.min(EVERY_MS * 2 ** Math.max(0, failures - 1), SLOWEST_MS));
  };
  setTimeout(loop, EVERY_MS);
  document.addEventListener("keydown", (event) => {
    const open = event.key === "Escape" && frame.querySelector("details.sg-pop[open]");
    if (!open) return;
    open.open = false;
    open.querySelector("summary").focus();
  });
})();
