"use strict";
// A secret that is pasted into a search. It must not be in an address, which the history and logs keep. A whole one is
// sent in a body, and the server finds its digest. Of a part, only the beginning that the lists show is searched for.
(() => {
  const SECRET = /^\s*(sg_(?:live|mgmt)_[0-9A-Za-z]{4})([0-9A-Za-z]+)\s*$/;
  const REST = 45;
  const palette = () => document.getElementById("search-input-command");

  const find = (secret) => {
    const form = document.createElement("form");
    form.method = "post";
    form.action = palette().getAttribute("hx-get").replace(/search\/$/, "projects/token/by-secret/");
    const fields = { csrfmiddlewaretoken: document.querySelector("[name=csrfmiddlewaretoken]").value, secret };
    for (const [name, value] of Object.entries(fields)) {
      form.append(Object.assign(document.createElement("input"), { type: "hidden", name, value }));
    }
    document.body.append(form);
    form.submit();
  };
  // Returns whether the search itself may go on, with what it may look for.
  const taken = (field) => {
    const [secret, begins, rest] = field.value.match(SECRET) || [];
    if (!begins) return { goOn: true, value: field.value };
    field.value = begins;
    if (rest.length < REST) return { goOn: true, value: begins };
    find(secret.trim());
    return { goOn: false };
  };

  document.addEventListener("submit", (event) => {
    const field = event.target.closest("#changelist-search")?.querySelector("[name=q]");
    if (field && !taken(field).goOn) event.preventDefault();
  });
  document.addEventListener("htmx:configRequest", (event) => {
    if (event.target !== palette()) return;
    const { goOn, value } = taken(event.target);
    if (goOn) event.detail.parameters.s = value;
    else event.preventDefault();
  });
})();
