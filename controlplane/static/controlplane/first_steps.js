"use strict";
// The first steps. The page asks every two seconds how far the installation is, and stops while it is hidden.
(() => {
  const EVERY_MS = 2000;
  const page = document.querySelector("[data-first-steps]");
  if (!page) return;
  // Reloading must neither create a second token nor ask whether to send the form again.
  history.replaceState(null, "", page.dataset.url);
  const told = page.querySelector("[data-told]");
  const stopped = page.querySelector("[data-stopped]");
  const all = () => [...page.querySelectorAll("[data-step]")];
  const isDone = (item) => item.classList.contains("sg-ok");
  let over = false;

  const stop = (text) => {
    stopped.textContent = text;
    stopped.hidden = !text;
  };
  const finish = (item, step) => {
    item.classList.add("sg-ok");
    item.classList.remove("sg-cur");
    item.removeAttribute("aria-current");
    item.querySelector("[data-number]").hidden = true;
    for (const part of item.querySelectorAll("[data-check]")) part.hidden = false;
    item.querySelector("[data-detail]").textContent = step.detail;
    told.textContent = `Done: ${step.title}. ${step.detail}`;
    if (step.name !== "request") return;
    item.querySelector(".sg-pulse")?.remove();
    const waiting = item.querySelector("[data-waiting]");
    if (waiting) waiting.textContent = `The first decision arrived: ${step.detail}.`;
    item.querySelector("[data-send-it]")?.remove();
  };
  const show = (steps) => {
    const fresh = steps.filter((step) => {
      const item = page.querySelector(`[data-step="${step.name}"]`);
      return step.done && !isDone(item);
    });
    if (!fresh.length) return;
    // Other forms belong to the next step. A page with a secret stays, because the secret cannot be shown again.
    if (!("secret" in page.dataset) && fresh.some((step) => step.name !== "request")) return location.reload();
    for (const step of fresh) finish(page.querySelector(`[data-step="${step.name}"]`), step);
    const next = all().find((item) => !isDone(item));
    next?.classList.add("sg-cur");
    next?.setAttribute("aria-current", "step");
    if (!next) {
      page.querySelector("[data-complete]").hidden = false;
      page.querySelector("[data-skip]")?.remove();
    }
    over = !next;
  };
  const read = async () => {
    if (over || document.hidden) return;
    const answer = await fetch(page.dataset.state).catch(() => null);
    if (answer?.redirected || answer?.status === 403) {
      over = true;
      return stop("You are signed out, so this page does not follow any more. Reload it to sign in.");
    }
    if (!answer?.ok) return stop("The server does not answer. The page tries again.");
    stop("");
    show((await answer.json()).steps);
  };
  const loop = async () => {
    await read();
    if (!over) setTimeout(loop, EVERY_MS);
  };
  document.addEventListener("visibilitychange", read);

  const copy = async (element) => {
    try {
      await navigator.clipboard.writeText(element.textContent);
      told.textContent = "Copied.";
    } catch {
      // Without HTTPS, browsers have no clipboard API.
      const range = document.createRange();
      range.selectNodeContents(element);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      told.textContent = document.execCommand("copy") ? "Copied." : "Copying failed. The text is selected, so press Ctrl+C.";
    }
  };
  page.addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.copy) await copy(document.getElementById(button.dataset.copy));
    if (button && "copyShown" in button.dataset) await copy(page.querySelector("[role=tabpanel]:not([hidden]) pre"));
    if (button && "sendIt" in button.dataset) await send(button);
  });
  const send = async (button) => {
    button.disabled = true;
    const body = new FormData();
    body.append("secret", document.getElementById("first-secret").textContent);
    body.append("csrfmiddlewaretoken", document.querySelector("[name=csrfmiddlewaretoken]").value);
    const answer = await fetch(page.dataset.send, { method: "POST", body }).catch(() => null);
    const reply = answer?.ok && !answer.redirected ? await answer.json() : { sentence: "It could not be sent." };
    page.querySelector("[data-sent]").textContent = reply.sentence;
    told.textContent = reply.sentence;
    button.disabled = false;
  };
  for (const button of page.querySelectorAll("[data-send-it]")) button.hidden = false;

  const tabs = [...page.querySelectorAll("[role=tab]")];
  const choose = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(index + step + tabs.length) % tabs.length];
      choose(next);
      next.focus();
    });
  });
  const use = page.querySelector("[data-use]");
  const named = () => {
    const chosen = page.querySelector("[name=template]:checked");
    if (use && chosen) use.textContent = `Use ${chosen.closest("label").querySelector("strong").textContent}`;
  };
  page.addEventListener("change", named);
  named();
  loop();
})();
