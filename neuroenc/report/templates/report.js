"use strict";
// Only narrows the table that is already in the page; without it every row is shown.
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const text = document.getElementById("filter-text");
  const roi = document.getElementById("filter-roi");
  const count = document.getElementById("filter-count");
  const rows = [...document.querySelectorAll("#voxel-table tbody tr")].map((row) => ({
    row,
    text: row.textContent.toLowerCase(),
    rois: row.cells[2].textContent.split(", "),
  }));
  const narrow = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of rows) {
      const fits = words.every((word) => entry.text.includes(word)) && (!roi.value || entry.rois.includes(roi.value));
      entry.row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  text.addEventListener("input", narrow);
  roi.addEventListener("change", narrow);
  form.hidden = false;
  narrow();
})();
// A closed block prints as nothing.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
