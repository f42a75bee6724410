"use strict";
// The currency is beside the amounts of an override from when a limit of money is chosen.
document.addEventListener("DOMContentLoaded", () => {
  const limit = document.getElementById("id_limit");
  const address = document.querySelector("[data-unit-of]")?.dataset.unitOf;
  if (!limit || !address) return;
  const show = async () => {
    const chosen = limit.value;
    const answer = chosen && (await fetch(`${address}?limit=${encodeURIComponent(chosen)}`).catch(() => null));
    const isMoney = Boolean(answer?.ok && !answer.redirected && (await answer.json()).is_money);
    if (chosen !== limit.value) return;
    for (const input of document.querySelectorAll(".sg-amount")) input.classList.toggle("sg-money", isMoney);
  };
  // The box that searches tells only listeners of its own library.
  window.django.jQuery(limit).on("change", show);
});
