"use strict";
// The limits in the form of a policy. Fields that an algorithm does not use are hidden and not sent, and a sentence from
// the server says what the limit does.
(() => {
  const DELAY_MS = 300;
  const field = (row, name) => row.querySelector(`[name$="-${name}"]`);
  const holder = (input) => input.closest(".field-line") || input.closest("[class*=field-]") || input.parentElement;

  const isMoney = (row) => {
    const unit = field(row, "unit");
    return unit.value.trim().toLowerCase() === unit.dataset.money.toLowerCase();
  };

  // A field says of which values of others it has a use. The server has the same rules.
  const given = (row, name) => (name === "unit" && isMoney(row) ? "micros" : field(row, name).value.trim() || null);
  const isUsed = (row, input) => JSON.parse(input.dataset.onlyIf).every(([name, values]) => values.includes(given(row, name)));
  // Only fixed windows follow the calendar, so each of the two choices changes the other.
  const agree = (row, changed) => {
    const algorithm = field(row, "algorithm");
    const calendar = field(row, "calendar");
    if (!calendar.value || algorithm.value === "fixed_window") return;
    if (changed === calendar) algorithm.value = "fixed_window";
    else if (changed === algorithm) calendar.value = "";
  };
  const show = (row) => {
    // The style sheet shows the currency beside an amount of money.
    for (const name of ["quota", "burst", "rollover"]) field(row, name).classList.toggle("sg-money", isMoney(row));
    for (const input of row.querySelectorAll("[data-only-if]")) {
      const wanted = isUsed(row, input);
      const box = holder(input);
      box.classList.toggle("sg-hidden", !wanted && !box.querySelector(".errorlist"));
      input.disabled = !wanted;
    }
    // A folded part without a field has nothing to say.
    for (const part of row.querySelectorAll("fieldset:has(details)")) {
      part.classList.toggle("sg-hidden", ![...part.querySelectorAll("input, select, textarea")].some((input) => !input.disabled));
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
  const prefix = (row) => field(row, "algorithm").name.replace(/-algorithm$/, "");
  const wrong = (row, errors) =>
    Object.entries(errors).map(([name, texts]) => {
      const input = field(row, name);
      const label = input && row.querySelector(`label[for="${input.id}"]`);
      return `${label ? label.textContent.replace(/[*:]/g, "").trim() : "This limit"}: ${texts.join(" ")}`;
    });
  // A warning stands under the field that causes it, and never blocks.
  const warn = (row, warnings) => {
    for (const old of row.querySelectorAll(".sg-advice")) old.remove();
    for (const { field: name, text, kind } of warnings) {
      const note = document.createElement("p");
      note.className = `sg-note sg-advice${kind === "warn" ? " sg-warn" : ""}`;
      const icon = document.createElement("span");
      icon.className = "material-symbols-outlined sg-icon";
      icon.setAttribute("aria-hidden", "true");
      icon.textContent = kind === "warn" ? "warning" : "info";
      const words = document.createElement("span");
      words.textContent = text;
      note.append(icon, words);
      const input = field(row, name);
      const line = input?.closest(".field-row") || input?.closest("fieldset");
      if (line) line.after(note);
      else row.append(note);
      // A folded limit stays folded. Its line tells that there is a warning.
      input?.closest("details:not(.sg-limit)")?.setAttribute("open", "");
    }
  };
  // The line of a limit, which stands for it while it is folded.
  const line = (row, told) => {
    const mark = (name, wanted) => row.querySelector(`summary .${name}`)?.classList.toggle("sg-hidden", !wanted);
    const valid = Boolean(told.sentence);
    const shadow = field(row, "mode").value === "shadow";
    row.querySelector(".sg-limit-name").textContent = field(row, "name").value.trim() || "New limit";
    row.querySelector(".sg-words").textContent = valid ? told.brief : wrong(row, told.errors).join(" ");
    mark("sg-invalid", !valid);
    mark("sg-warned", valid && told.warnings.some(({ kind }) => kind === "warn"));
    mark("sg-changed", told.changed);
    mark("sg-enforced", !shadow);
    mark("sg-shadow", shadow);
  };
  const fold = (row, states) => {
    for (const [name, text] of Object.entries(states)) {
      const summary = row.querySelector(`fieldset.sg-${name} summary`);
      if (!summary) continue;
      let now = summary.querySelector(".sg-now");
      if (!now) {
        now = document.createElement("span");
        now.className = "sg-now";
        (summary.querySelector("h2") || summary).after(now);
      }
      now.textContent = text;
    }
  };
  const tell = (row, told) => {
    if (!told) return;
    const errors = wrong(row, told.errors);
    place(row).textContent = told.sentence ? `${told.sentence}.` : errors.join(" ");
    place(row).classList.toggle("sg-wrong", !told.sentence);
    line(row, told);
    if (!told.sentence) return;
    fold(row, told.folded);
    warn(row, told.warnings);
  };
  const judge = (request) => {
    const out = document.querySelector("[data-tried]");
    if (!out) return;
    out.hidden = !request;
    if (!request) return;
    out.querySelector("[role=status]").textContent = request.sentence;
    const body = out.querySelector("tbody");
    body.replaceChildren();
    for (const limit of request.limits) {
      const line = body.insertRow();
      line.className = limit.matches ? "" : "sg-row-off";
      const name = document.createElement("th");
      name.scope = "row";
      name.textContent = limit.name;
      line.append(name);
      line.insertCell().textContent = `${limit.matches ? "✓ matches" : "– no match"}${limit.why ? `: ${limit.why}` : ""}`;
    }
  };
  let asked = 0;
  const ask = async () => {
    const url = document.querySelector("[data-advice]")?.dataset.advice;
    if (!url) return;
    const number = ++asked;
    const form = document.getElementById("policy_form");
    const body = new FormData(form);
    body.delete("policy");
    const id = location.pathname.match(/policy\/([^/]+)\/change/);
    if (id) body.append("policy", decodeURIComponent(id[1]).replaceAll("_5F", "_"));
    for (const input of document.querySelectorAll("[data-try] [name]")) body.append(input.name, input.value);
    const answer = await fetch(url, { method: "POST", body }).catch(() => null);
    const reply = answer?.ok && !answer.redirected ? await answer.json() : null;
    if (!reply || number !== asked) return;
    for (const row of rows()) tell(row, reply.limits[prefix(row)]);
    const estimate = document.getElementById("id_estimate");
    const words = { named: [form.elements.slug.value, form.elements.name.value].filter(Boolean).join(" · ") };
    if (estimate) words.metering = `estimate: ${estimate.selectedOptions[0]?.textContent.split(" — ")[0].trim().toLowerCase()}`;
    fold(form, words);
    judge(reply.request);
  };

  // The button does nothing before another script has made it, and that script has no event to wait for.
  const BEGIN_TRIES = 100;
  const BEGIN_PAUSE_MS = 50;
  const begin = (group, wanted, tries, done) =>
    setTimeout(() => {
      const before = rows().length;
      if (before >= wanted) return;
      opening = true;
      for (let left = wanted - before; left; left--) group.querySelector(".add-row")?.click();
      opening = false;
      if (rows().length < wanted && tries > 1) begin(group, wanted, tries - 1, done);
      else done();
    }, tries === BEGIN_TRIES ? 0 : BEGIN_PAUSE_MS);
  // The form is filled in from its top.
  const atTheTop = () => {
    if (document.activeElement === document.body) document.getElementById("id_slug")?.focus();
  };

  // When somebody comes back to the page, the browser restores what was typed into the fields that came with it. Limits
  // that were added are kept in the entry of the history, which nobody else reads and which ends with the tab.
  const fields = (row) => [...row.querySelectorAll("input:not([type=hidden]), select, textarea")].filter(({ name }) => name);
  const remember = () => {
    const limits = rows().map((row) => fields(row).map((input) => (input.type === "checkbox" ? input.checked : input.value)));
    history.replaceState({ ...history.state, limits }, "");
  };
  const restore = (limits) => {
    rows().forEach((row, number) => {
      fields(row).forEach((input, place) => {
        if (input.type === "checkbox") input.checked = limits[number][place];
        else input.value = limits[number][place];
      });
      show(row);
    });
    later();
  };

  const rows = () => [...document.querySelectorAll("#limits-group .form-group:not(.empty-form)")];
  let opening = false;
  let timer = 0;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      remember();
      ask();
    }, DELAY_MS);
  };
  const changed = (event) => {
    const row = event.target.closest("#limits-group .form-group:not(.empty-form)");
    if (!row) return;
    agree(row, event.target);
    show(row);
    later();
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
    let removed = 0;
    const remove = (event) => {
      const row = event.target.closest(".delete-template")?.closest(".form-group");
      if (!row) return;
      removed = rows().indexOf(row);
      keep();
    };
    document.addEventListener("click", remove, true);
    document.addEventListener("formset:added", (event) => {
      const row = event.target.closest(".form-group");
      if (!row || !group.contains(row)) return;
      show(row);
      if (!opening) field(row, "name")?.focus();
    });
    // The button that had the focus is gone, so the focus goes to the limit that took its place.
    document.addEventListener("formset:removed", () => {
      rows().forEach(show);
      later();
      const next = rows()[Math.min(removed, rows().length - 1)]?.querySelector("summary") || group.querySelector(".add-row a, a.add-row");
      setTimeout(() => next?.focus());
    });
    // When somebody comes back to the page, the browser restores what was typed, and says so to no script.
    window.addEventListener("pageshow", () => {
      rows().forEach(show);
      later();
    });
    document.querySelector("[data-try]")?.addEventListener("input", later);
    document.getElementById("id_default_cap")?.addEventListener("input", later);
    rows().forEach(show);
    ask();
    const [entry] = performance.getEntriesByType("navigation");
    const kept = entry?.type === "back_forward" ? history.state?.limits : null;
    if (kept?.length > rows().length) begin(group, kept.length, BEGIN_TRIES, () => restore(kept));
    // A policy without limits has no effect, so start with one limit.
    else if (location.pathname.endsWith("/add/")) begin(group, 1, BEGIN_TRIES, atTheTop);
  });
})();
