// The button of a review says what it will do.
"use strict";

const go = document.getElementById("sgp-go");

document.querySelectorAll("[data-verb]").forEach((choice) => {
  choice.addEventListener("change", () => {
    go.textContent = choice.dataset.verb;
  });
});
