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
// A closed block prints as nothing.
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((d) => { d.open = true; });
  document.querySelectorAll(".tab").forEach((tab) => { tab.hidden = false; });
});
