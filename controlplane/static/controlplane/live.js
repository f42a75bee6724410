"use strict";
// The table of counters, which is updated every two seconds while the tab is visible and not paused.
(() => {
  const EVERY_MS = 2000;
  const SLOWEST_MS = 16000;
  const QUIET_MS = 10000;
  const PATIENCE_MS = 5000;
  const section = document.querySelector("[data-live]");
  if (!section) return;
  const rows = section.querySelector("[data-rows]");
  const at = section.querySelector("[data-at]");
  const status = section.querySelector("[data-status]");
  const notice = section.querySelector("[data-notice]");
  const notes = section.querySelector("[data-notes]");
  const pause = section.querySelector("[data-pause]");
  const url = location.pathname.replace(/change\/$/, section.dataset.live);
  let states = null;
  let announced = 0;
  let over = false;
  let failures = 0;

  // The table is not a live region, because screen readers would read it every two seconds. Only full limits are announced.
  const tell = () => {
    const now = new Map([...rows.querySelectorAll("tr[data-name]")].map((row) => [row.dataset.name, row.dataset.state]));
    const full = states ? [...now].filter(([name, state]) => state === "full" && states.get(name) !== "full") : [];
    states = now;
    if (!full.length || Date.now() - announced < QUIET_MS) return;
    announced = Date.now();
    status.textContent = `${full.map(([name]) => name).join(", ")} reached its limit`;
  };
  // Old numbers must not pass for present ones, so the page says when and why the updates stopped.
  const stop = (text) => {
    if (notice.firstChild?.textContent === text) return;
    notice.replaceChildren(text);
    notice.hidden = false;
    rows.classList.add("sg-stale");
  };
  const ended = () => {
    over = true;
    stop(`You are signed out, so the counters stopped at ${at.textContent}. `);
    const link = document.createElement("a");
    link.href = location.href;
    link.className = "text-link";
    link.textContent = "Sign in again";
    notice.append(link);
    pause.disabled = true;
  };
  // Whoever is at a link by the keyboard stays there, although the rows are replaced.
  const swap = (body) => {
    const here = document.activeElement;
    const row = here.closest?.("[data-rows] tr[data-name]");
    const place = row ? [...row.querySelectorAll("a")].indexOf(here) : -1;
    rows.innerHTML = body;
    const same = row && [...rows.querySelectorAll("tr[data-name]")].find((it) => it.dataset.name === row.dataset.name);
    same?.querySelectorAll("a")[place]?.focus({ preventScroll: true });
  };
  const read = async () => {
    if (over || document.hidden || pause.getAttribute("aria-pressed") === "true") return;
    // A server that keeps a request waiting does not answer either, and the numbers are old all the same.
    const asked = { headers: { "X-Requested-With": "fetch" }, signal: AbortSignal.timeout(PATIENCE_MS) };
    const text = (answer) => (answer.ok ? answer.text() : "");
    const [answer, body] = await fetch(url, asked).then(async (it) => [it, await text(it)]).catch(() => [null, ""]);
    if (over || pause.getAttribute("aria-pressed") === "true") return;
    if (answer?.redirected || answer?.status === 403) return ended();
    if (answer?.status === 404) return stop(`This page is out of date, because the row was deleted. The counters stopped at ${at.textContent}.`);
    failures = answer?.ok ? 0 : failures + 1;
    if (!answer?.ok) return stop(`The server does not answer, so the counters stopped at ${at.textContent}. The page tries again.`);
    swap(body);
    at.textContent = rows.querySelector("[data-now]").textContent;
    notes.innerHTML = rows.querySelector("[data-told]").innerHTML;
    notice.hidden = true;
    notice.replaceChildren();
    rows.classList.remove("sg-stale");
    tell();
  };
  pause.addEventListener("click", () => {
    const paused = pause.getAttribute("aria-pressed") !== "true";
    pause.setAttribute("aria-pressed", paused);
    pause.textContent = paused ? "Resume updates" : "Pause updates";
    if (paused) stop(`You paused the updates, so the counters stopped at ${at.textContent}.`);
    else read();
  });
  document.addEventListener("visibilitychange", read);
  // The next request waits for the reply to the last one, so a slow server gets one request at a time. One that does not
  // answer is asked less and less often.
  const loop = async () => {
    await read();
    if (!over) setTimeout(loop, Math.min(EVERY_MS * 2 ** Math.max(0, failures - 1), SLOWEST_MS));
  };
  loop();
})();
