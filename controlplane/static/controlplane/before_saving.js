"use strict";
// A form that was open for a while. Before it leaves the page, the server says whether it would take it, because what was
// typed would be lost with the page if the user is signed out, or if the row or the right to change it is gone.
(() => {
  const AWHILE_MS = 60000;
  const WAIT_MS = 10000;
  const opened = Date.now();
  let asking = null;
  let settled = null;

  const told = (form) => {
    let place = form.querySelector(":scope > .sg-not-saved");
    if (!place) {
      place = document.createElement("div");
      place.className = "sg-not-saved sg-warning";
      place.setAttribute("role", "alert");
      place.tabIndex = -1;
      form.prepend(place);
    }
    return place;
  };
  const link = (href, text) => Object.assign(document.createElement("a"), { href, textContent: text, target: "_blank", className: "text-link" });
  const say = (form, ...parts) => {
    const place = told(form);
    place.replaceChildren(...parts);
    place.scrollIntoView({ block: "center" });
    place.focus({ preventScroll: true });
  };

  // Return what stands against sending the form, as parts of a sentence, or nothing.
  const against = (reply) => {
    const here = location.pathname;
    const path = new URL(reply.url).pathname;
    if (path !== here && /\/(login|second-factor|code)\//.test(path)) {
      return ["You are signed out, so nothing was saved. ", link(here, "Sign in in another tab"), ", then save here again. What you typed is still here."];
    }
    if (reply.status === 403) return ["You do not have permission for this any more, so nothing was saved. What you typed is still here."];
    if (here.endsWith("/change/") && (path !== here || reply.status === 404)) {
      return ["This does not exist any more. Another user may have deleted it. Nothing was saved. What you typed is still here, so that you can copy it."];
    }
    return null;
  };
  const ask = async (form, submitter) => {
    let found = null;
    try {
      const reply = await fetch(location.pathname + location.search, { method: "HEAD", cache: "no-store", signal: AbortSignal.timeout(WAIT_MS) });
      found = against(reply);
    } catch {
      found = ["The server does not answer, so nothing was saved. What you typed is still here. Save again in a moment."];
    }
    asking = null;
    if (found) return say(form, ...found);
    settled = form;
    form.requestSubmit(submitter);
  };
  // The user may have signed in anew in another tab. The form then has the token of the former session.
  const renew = (form) => {
    const token = document.cookie.match(/(?:^|; )csrftoken=([^;]+)/)?.[1];
    const field = form.querySelector("[name=csrfmiddlewaretoken]");
    if (token && field) field.value = token;
  };

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    const holdsWords = !form.hasAttribute("hx-post") && form.closest("#content");
    if (holdsWords && settled !== form && Date.now() - opened >= AWHILE_MS) {
      event.preventDefault();
      event.stopImmediatePropagation();
      if (asking !== form) {
        asking = form;
        ask(form, event.submitter);
      }
      return;
    }
    settled = null;
    renew(form);
  }, true);
})();
