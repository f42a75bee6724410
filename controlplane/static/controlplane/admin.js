"use strict";
// Keyboard and screen-reader support that the theme lacks, the second submission of a dialog, and its errors.
(() => {
  const NAMES = {
    dock_to_right: "Open or close the menu",
    close: "Close",
    water_lock: "Overview",
    search: "Search",
    add: "Add",
    filter_list: "Filters",
    arrow_circle_down: "Sort the other way",
    arrow_circle_up: "Sort the other way",
    cancel: "Do not sort by this",
    expand_more: "Show details",
    more_horiz: "More",
    delete: "Remove",
    unfold_more: "Account and appearance",
  };
  const CONTROLS = "[x-on\\:click], .delete-template, label:has(> div > input.delete)";
  const NATIVE = "a[href], button, input, select, textarea, summary, body, html, #modal-content, nav, [x-on\\:click\\.outside]";

  const named = (element) => {
    const icon = [...element.querySelectorAll(".material-symbols-outlined"), element].map((e) => e.textContent.trim());
    const text = element.textContent.trim();
    if (element.id === "changelist-filter-close") return "Close the filters";
    if (element.matches(".delete-template, label:has(> div > input.delete)")) return "Remove this limit";
    if (element.getAttribute("x-on:click")?.includes("openTheme")) return "Appearance";
    return NAMES[text] || (text && !/^[a-z_]+$/.test(text) ? null : NAMES[icon[0]]);
  };
  // Boxes that search the server. Their label belongs to a hidden select, so the visible box needs a name.
  const nameBox = (box) => {
    const select = box.previousElementSibling;
    const label = select?.id && document.querySelector(`label[for="${select.id}"]`);
    if (!label) return;
    label.id = label.id || `label-${select.id}`;
    const shown = box.querySelector(".select2-selection__rendered");
    shown?.removeAttribute("role");
    shown?.removeAttribute("aria-readonly");
    const combobox = box.querySelector("[role=combobox]");
    const labelled = [label.id, shown?.id].filter(Boolean).join(" ");
    if (combobox && combobox.getAttribute("aria-labelledby") !== labelled) combobox.setAttribute("aria-labelledby", labelled);
    box.querySelector(".select2-search__field")?.setAttribute("aria-labelledby", label.id);
  };
  // Clickable elements that a keyboard cannot reach become buttons.
  const mend = (root) => {
    for (const element of root.querySelectorAll(CONTROLS)) {
      if (element.matches(NATIVE) || element.hasAttribute("tabindex")) continue;
      element.setAttribute("role", "button");
      element.tabIndex = 0;
      const name = named(element);
      if (name) element.setAttribute("aria-label", name);
    }
    // Buttons and links that show only an icon.
    for (const element of root.querySelectorAll("a:not([aria-label]), button:not([aria-label])")) {
      const name = NAMES[element.textContent.trim()];
      if (name) element.setAttribute("aria-label", name);
    }
    document.getElementById("command-submit")?.setAttribute("aria-label", "Search");
    document.getElementById("search-input-command")?.setAttribute("aria-label", "Search or run a command");
    for (const box of root.querySelectorAll(".select2-container")) nameBox(box);
    for (const icon of root.querySelectorAll(".material-symbols-outlined:not([role])")) {
      icon.setAttribute("aria-hidden", icon.getAttribute("tabindex") === null);
    }
  };
  const press = (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    const element = event.target;
    if (element.getAttribute("role") !== "button" || element.matches("a, button")) return;
    event.preventDefault();
    element.click();
  };
  // Django refers to the help text of each field by an id that the theme leaves out. The theme also closes sections with errors.
  const join = () => {
    for (const field of document.querySelectorAll("[aria-describedby]")) {
      for (const id of field.getAttribute("aria-describedby").split(" ")) {
        if (!id.endsWith("_helptext") || document.getElementById(id)) continue;
        const help = field.closest(".field-line")?.querySelector(".leading-relaxed.text-xs");
        if (help) help.id = id;
      }
    }
    for (const list of document.querySelectorAll("details ul.errorlist")) list.closest("details").open = true;
  };

  // The theme shows a dialog some frames after its content has arrived, and nothing that is hidden takes the focus.
  const enter = (dialog, frames = 60) => {
    const wrong = dialog.querySelector("[aria-invalid=true]");
    const field = wrong || dialog.querySelector("input:checked, input:not([type=hidden], :disabled), select, textarea") || dialog;
    field.focus();
    if (document.activeElement !== field && frames) requestAnimationFrame(() => enter(dialog, frames - 1));
  };

  // The theme shows nothing if a request of a dialog fails, so the user would not know that nothing was done.
  const failure = (xhr) => {
    const told = document.createElement("p");
    told.className = "sg-warning";
    told.setAttribute("role", "alert");
    const link = document.createElement("a");
    link.href = location.href;
    link.className = "text-link";
    link.textContent = "Reload the page";
    if (!xhr.status) {
      told.append("The server does not answer. It may have received the request. ", link, " to see what was done.");
    } else if (isSignIn(xhr)) {
      link.textContent = "Sign in again";
      told.append("You are signed out, so nothing was done. ", link);
    } else {
      const page = new DOMParser().parseFromString(xhr.responseText, "text/html");
      const words = [...page.querySelectorAll("main h1, main p:first-of-type")].map((part) => part.textContent.trim());
      const id = page.querySelector("main code")?.textContent;
      told.append(`${words.join(". ") || "The request failed."} ${id ? `Request id ${id}. ` : ""}`, link);
    }
    return told;
  };
  const isSignIn = (xhr) => Boolean(xhr.responseURL) && new URL(xhr.responseURL).pathname.endsWith("/login/");
  const answered = (event) => {
    const xhr = event.detail.xhr;
    const asked = event.detail.requestConfig?.elt || event.target;
    if (xhr.status && xhr.status < 400 && !isSignIn(xhr)) return;
    const dialog = asked.closest?.("#modal-content");
    if (!dialog && asked.getAttribute?.("hx-target") !== "#modal-content") return;
    event.detail.shouldSwap = false;
    if (!dialog) {
      // The dialog was not opened yet. The page of the error, or of the log-in, says why.
      if (isSignIn(xhr) || !xhr.status) location.reload();
      else location.assign(xhr.responseURL);
      return;
    }
    dialog.querySelector("[role=alert]")?.remove();
    dialog.querySelector("#dialog-form").prepend(failure(xhr));
  };

  // A second press of the same button sends nothing while the first one is answered.
  const AGAIN_MS = 5000;
  let sent = new WeakMap();
  const once = (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    const last = sent.get(form);
    if (last?.button === event.submitter && Date.now() - last?.at < AGAIN_MS) {
      event.preventDefault();
      event.stopImmediatePropagation();
    } else sent.set(form, { button: event.submitter, at: Date.now() });
  };
  // A dialog that was not valid may be sent again at once.
  const settled = ({ detail }) => {
    if (!detail.xhr?.getResponseHeader("HX-Redirect") && !detail.xhr?.getResponseHeader("HX-Trigger")) sent.delete(detail.elt);
  };

  // In the palette, Enter opens the first result, unless another one is chosen or the results are for an older text.
  let asked = "";
  let shown = "";
  const choose = (event) => {
    if (event.key !== "Enter" || event.target.id !== "search-input-command" || event.target.value !== shown) return;
    const results = document.getElementById("command-results");
    const first = results?.querySelector("li a[href]");
    if (!first || results.querySelector("li.active")) return;
    event.preventDefault();
    location.assign(first.href);
  };
  const noteSearch = (event) => {
    const box = document.getElementById("search-input-command");
    if (event.type === "htmx:beforeRequest" && event.target === box) asked = box.value;
    if (event.type === "htmx:afterSwap" && event.target.id === "command-results") shown = asked;
  };
  // Pages show times, and read them, in this zone. Strange names count as UTC.
  document.cookie = `sluicegate_zone=${Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC"};path=/admin/;max-age=31536000;samesite=lax`;
  document.addEventListener("submit", once, true);
  document.addEventListener("htmx:afterRequest", settled);
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) sent = new WeakMap();
  });
  document.addEventListener("keydown", press);
  document.addEventListener("keydown", choose);
  document.addEventListener("htmx:beforeRequest", noteSearch);
  document.addEventListener("htmx:afterSwap", noteSearch);
  document.addEventListener("DOMContentLoaded", () => {
    const content = document.getElementById("content");
    if (content) {
      content.setAttribute("role", "main");
      content.tabIndex = -1;
    }
    mend(document);
    join();
    new MutationObserver((changes) => {
      for (const change of changes) for (const node of change.addedNodes) if (node.querySelectorAll) mend(node.parentElement || node);
    }).observe(document.body, { childList: true, subtree: true });

    // The palette leads here to open an action of the row, whose dialog asks before it does anything.
    const here = new URL(location.href);
    const deed = here.searchParams.get("do");
    if (deed && /^[a-z_]+$/.test(deed)) {
      here.searchParams.delete("do");
      history.replaceState(null, "", here);
      window.addEventListener("load", () => document.querySelector(`a[hx-get$="/${deed}/"], a[href$="/${deed}/"]`)?.click());
    }
    // The dialog is valid, and its action returns a whole page, so the form is submitted again.
    document.body.addEventListener("sluicegate:confirmed", (event) => {
      const form = event.target.closest("form");
      form.action = form.getAttribute("hx-post");
      form.submit();
    });
    document.body.addEventListener("htmx:beforeSwap", answered);
    document.body.addEventListener("htmx:sendError", answered);
    // The theme returns the focus to where it was when the dialog was shown, which may be inside the dialog already.
    const frame = document.getElementById("modal-content")?.parentElement;
    if (!frame) return;
    let opener = null;
    let shown = false;
    document.body.addEventListener("htmx:beforeRequest", (event) => {
      if (event.target.getAttribute("hx-target") === "#modal-content") opener = event.target;
    });
    document.body.addEventListener("htmx:afterSettle", (event) => {
      const dialog = event.target.closest("#modal-content");
      if (dialog) enter(dialog);
    });
    new MutationObserver(() => {
      const closed = shown && frame.style.display === "none";
      shown = frame.style.display !== "none";
      if (closed) opener?.focus();
    }).observe(frame, { attributes: true, attributeFilter: ["style"] });
  });
})();
