"use strict";
// Show the clips that match the filters and their number; play one clip at a time.
(function () {
  const form = document.getElementById("filters");
  const table = document.getElementById("clip-table");
  const count = document.getElementById("count");
  const clips = Array.from(table.querySelectorAll(".clip"));

  function show() {
    // A page without classes has only the choice of the folder.
    const chosenClass = form.elements["class"] ? form.elements["class"].value : "";
    const chosenMethod = form.elements["method"].value;
    const onlyWrong = form.elements["wrong"] ? form.elements["wrong"].checked : false;
    for (const cell of table.querySelectorAll("[data-method]")) {
      cell.hidden = chosenMethod !== "" && cell.dataset.method !== chosenMethod;
    }
    for (const clip of clips) {
      clip.hidden = onlyWrong && clip.dataset.wrong === undefined;
    }
    for (const row of table.querySelectorAll("tbody tr")) {
      const selected = chosenClass === "" || row.dataset.class === chosenClass;
      row.hidden = !selected || !row.querySelector("td:not([hidden]) .clip:not([hidden])");
    }
    const shown = clips.filter((clip) => !clip.closest("[hidden]")).length;
    table.hidden = shown === 0;
    count.textContent = shown === 0
      ? "No clip of " + clips.length + " matches these filters."
      : "Showing " + shown + " of " + clips.length + " clips.";
    for (const player of table.querySelectorAll("audio")) {
      if (player.closest("[hidden]")) {
        player.pause();
      }
    }
  }

  form.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  show();

  document.addEventListener("play", function (event) {
    for (const player of table.querySelectorAll("audio")) {
      if (player !== event.target) {
        player.pause();
      }
    }
  }, true);
})();
