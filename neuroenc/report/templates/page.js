"use strict";
// Without it every tab is shown, one below the other.
(() => {
  const tabs = [...document.querySelectorAll(".tab")];
  const open = () => {
    // A voxel, region or search in the address is the explorer's.
    const own = /^#(voxel|roi|subject|search)=/.test(location.hash);
    let target = null;
    try { target = document.getElementById(own ? "controls" : decodeURIComponent(location.hash.slice(1))); } catch { /* no address of ours */ }
    const chosen = target?.closest(".tab") || (target ? null : tabs[0]);
    if (!chosen) return;
    for (const tab of tabs) tab.hidden = tab !== chosen;
    for (const link of document.querySelectorAll("nav.tabs a")) {
      if (link.hash === `#${chosen.id}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
    }
    if (target === chosen) scrollTo(0, 0); else if (!own) target?.scrollIntoView();
  };
  if (tabs.length) {
    document.documentElement.classList.add("tabbed");
    addEventListener("hashchange", open);
    open();
  }
})();
(() => {
  // Only narrows the table that is already in the page; without it every row is shown.
  const form = document.getElementById("filter");
  if (!form) return;
  const text = document.getElementById("filter-text"), roi = document.getElementById("filter-roi");
  const rows = [...document.querySelectorAll("#voxel-table tbody tr")].map((row) => ({
    row, text: row.textContent.toLowerCase(), rois: row.cells[2].textContent.split(", "),
  }));
  const narrow = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of rows) {
      const fits = words.every((word) => entry.text.includes(word)) && (!roi.value || entry.rois.includes(roi.value));
      entry.row.hidden = !fits;
      shown += fits;
    }
    document.getElementById("filter-count").textContent = `${shown} of ${rows.length}`;
    document.getElementById("filter-none").hidden = shown > 0;
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  text.addEventListener("input", narrow);
  roi.addEventListener("change", narrow);
  form.hidden = false;
  narrow();
})();
// A closed block prints as nothing.
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((d) => { d.open = true; });
  document.querySelectorAll(".tab").forEach((tab) => { tab.hidden = false; });
});
