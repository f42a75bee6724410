"use strict";
// What the theme leaves out for people who use a keyboard or a screen reader, and the second half of a dialog.
(() => {
  const NAMES = {
    dock_to_right: "Open or close the menu",
    close: "Close",
    search: "Search",
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
    if (element.matches(".delete-template, label:has(> div > input.delete)")) return "Remove this limit";
    return NAMES[text] || (text && !/^[a-z_]+$/.test(text) ? null : NAMES[icon[0]]);
  };
  // Clickable, but neither reachable nor announced: make it a button.
  const mend = (root) => {
    for (const element of root.querySelectorAll(CONTROLS)) {
      if (element.matches(NATIVE) || element.hasAttribute("tabindex")) continue;
      element.setAttribute("role", "button");
      element.tabIndex = 0;
      const name = named(element);
      if (name) element.setAttribute("aria-label", name);
    }
    for (const link of root.querySelectorAll("a[href='#']:not([aria-label])")) {
      const name = NAMES[link.textContent.trim()];
      if (name) link.setAttribute("aria-label", name);
    }
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
  // Errors tell themselves to the field they belong to.
  const join = () => {
    for (const list of document.querySelectorAll("ul.errorlist")) {
      const field = list.closest(".field-line, .form-row, [class*=field-]")?.querySelector("input:not([type=hidden]), select, textarea");
      if (!field || field.hasAttribute("aria-describedby")) continue;
      list.id = list.id || `error-${field.id}`;
      field.setAttribute("aria-describedby", list.id);
      field.setAttribute("aria-invalid", "true");
      list.closest("details")?.setAttribute("open", "");
    }
  };

  document.addEventListener("keydown", press);
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

    // A dialog was filled in well, and what it does answers with a page of its own.
    document.body.addEventListener("sluicegate:confirmed", (event) => {
      const form = event.target.closest("form");
      form.action = form.getAttribute("hx-post");
      form.submit();
    });
    document.body.addEventListener("htmx:afterSwap", (event) => {
      if (event.target.id === "modal-content") requestAnimationFrame(() => event.target.querySelector("input:not([type=hidden]), select, textarea")?.focus());
    });
  });
})();
