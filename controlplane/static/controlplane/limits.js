"use strict";
// The limits in the form of a policy. Fields that an algorithm does not use are hidden and not sent, and a sentence from
// the server says what the limit does.
(() => {
  const DELAY_MS = 300;
  const field = (row, name) => row.querySelector(`[name$="-${name}"]`);
  const holder = (input) => input.closest(".field-line") || input.closest("[class*=field-]") || input.parentElement;

  const meaning = (row) => {
    const algorithm = field(row, "algorithm").value;
    const fixed = algorithm === "fixed_window";
    const calendar = fixed ? field(row, "calendar").value : "";
    const unit = field(row, "unit").value.trim();
    const tokens = ["tokens", "input_tokens", "output_tokens"].includes(unit);
    const money = unit === "micros";
    return {
      calendar: fixed,
      window_seconds: !calendar,
      time_zone: Boolean(calendar) && calendar !== "lifetime",
      anchor: ["day", "week", "month", "year"].includes(calendar),
      burst: algorithm === "token_bucket",
      rollover: Boolean(calendar) && calendar !== "lifetime",
      weights: tokens,
      unpriced: money,
      charge_as: money && field(row, "unpriced").value === "charge_as",
      unmetered: tokens || money,
    };
  };
  const show = (row) => {
    for (const [name, wanted] of Object.entries(meaning(row))) {
      const input = field(row, name);
      if (!input) continue;
      const box = holder(input);
      box.classList.toggle("sg-hidden", !wanted && !box.querySelector(".errorlist"));
      input.disabled = !wanted;
    }
  };

  const place = (row) => {
    let place = row.querySelector(".sg-sentence");
    if (!place) {
      place = document.createElement("p");
      place.className = "sg-sentence";
      place.setAttribute("role", "status");
      row.querySelector("fieldset").before(place);
    }
    return place;
  };
  const ask = async (row) => {
    const form = row.closest("form");
    const prefix = field(row, "algorithm").name.replace(/algorithm$/, "");
    const body = new FormData();
    for (const [name, value] of new FormData(form)) if (name.startsWith(prefix)) body.append(name.slice(prefix.length), value);
    const id = location.pathname.match(/policy\/([^/]+)\/change/);
    if (id) body.append("policy", decodeURIComponent(id[1]).replaceAll("_5F", "_"));
    const url = location.pathname.replace(/policies\/policy\/.*/, "policies/policy/sentence/");
    const token = form.querySelector("[name=csrfmiddlewaretoken]").value;
    const answer = await fetch(url, { method: "POST", body, headers: { "X-CSRFToken": token } });
    return answer.ok ? answer.json() : null;
  };
  const tell = async (row) => {
    const number = (row.dataset.asked = String(Number(row.dataset.asked || 0) + 1));
    const reply = await ask(row).catch(() => null);
    if (!reply || row.dataset.asked !== number) return;
    const errors = Object.entries(reply.errors).map(([name, texts]) => {
      const input = field(row, name);
      const label = input && row.querySelector(`label[for="${input.id}"]`);
      return `${label ? label.textContent.replace(/[*:]/g, "").trim() : "This limit"}: ${texts.join(" ")}`;
    });
    place(row).textContent = reply.sentence ? `${reply.sentence}.` : errors.join(" ");
    place(row).classList.toggle("sg-wrong", !reply.sentence);
  };

  const rows = () => [...document.querySelectorAll("#limits-group .form-group:not(.empty-form)")];
  const timers = new WeakMap();
  const later = (row) => {
    clearTimeout(timers.get(row));
    timers.set(row, setTimeout(() => tell(row), DELAY_MS));
  };
  const changed = (event) => {
    const row = event.target.closest("#limits-group .form-group:not(.empty-form)");
    if (!row) return;
    show(row);
    later(row);
  };
  // When a row is removed, the theme rebuilds all rows from the markup. So the typed values are kept in the markup.
  const keep = () => {
    for (const input of document.querySelectorAll("#limits-group input, #limits-group textarea")) {
      if (input.type === "checkbox") input.toggleAttribute("checked", input.checked);
      else if (input.tagName === "TEXTAREA") input.textContent = input.value;
      else input.setAttribute("value", input.value);
    }
    for (const option of document.querySelectorAll("#limits-group option")) option.toggleAttribute("selected", option.selected);
  };

  document.addEventListener("DOMContentLoaded", () => {
    const group = document.getElementById("limits-group");
    // Without the permission to change the policy, the page shows text in place of fields.
    if (!group?.querySelector("[name$='-algorithm']")) return;
    group.addEventListener("input", changed);
    group.addEventListener("change", changed);
    document.addEventListener("click", (event) => event.target.closest(".delete-template") && keep(), true);
    document.addEventListener("formset:added", (event) => {
      const row = event.target.closest(".form-group");
      if (!row || !group.contains(row)) return;
      show(row);
      field(row, "name")?.focus();
    });
    document.addEventListener("formset:removed", () => rows().forEach(show));
    for (const row of rows()) {
      show(row);
      tell(row);
    }
    // A policy without limits has no effect, so start with one limit.
    if (!rows().length && location.pathname.endsWith("/add/")) setTimeout(() => group.querySelector(".add-row")?.click());
  });
})();
