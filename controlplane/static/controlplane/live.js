"use strict";
// Counters that keep themselves current: read every two seconds, not while the tab is hidden, and until paused.
(() => {
  const EVERY_MS = 2000;
  const QUIET_MS = 10000;
  const section = document.querySelector("[data-live]");
  if (!section) return;
  const rows = section.querySelector("[data-rows]");
  const at = section.querySelector("[data-at]");
  const status = section.querySelector("[data-status]");
  const pause = section.querySelector("[data-pause]");
  const url = location.pathname.replace(/change\/$/, section.dataset.live);
  let states = null;
  let told = 0;

  // The table is no live region, or it would be read out every two seconds: only what changes its state is told.
  const tell = () => {
    const now = new Map([...rows.querySelectorAll("tr[data-name]")].map((row) => [row.dataset.name, row.dataset.state]));
    const full = states ? [...now].filter(([name, state]) => state === "full" && states.get(name) !== "full") : [];
    states = now;
    if (!full.length || Date.now() - told < QUIET_MS) return;
    told = Date.now();
    status.textContent = `${full.map(([name]) => name).join(", ")} reached its limit`;
  };
  const read = async () => {
    if (document.hidden || pause.getAttribute("aria-pressed") === "true") return;
    const answer = await fetch(url, { headers: { "X-Requested-With": "fetch" } }).catch(() => null);
    if (!answer?.ok || answer.redirected || pause.getAttribute("aria-pressed") === "true") return;
    rows.innerHTML = await answer.text();
    at.textContent = rows.querySelector("[data-now]").textContent;
    tell();
  };
  pause.addEventListener("click", () => {
    const paused = pause.getAttribute("aria-pressed") !== "true";
    pause.setAttribute("aria-pressed", paused);
    pause.textContent = paused ? "Resume updates" : "Pause updates";
    if (!paused) read();
  });
  document.addEventListener("visibilitychange", read);
  // The next reading waits for the last: a slow server is not asked twice at once.
  const loop = async () => {
    await read();
    setTimeout(loop, EVERY_MS);
  };
  loop();
})();
