// Two subjects of a region, chosen by the reader; without this script all stand side by side.
(() => {
  const box = document.getElementById("beside"), pick = ["left", "right"].map((id) => document.getElementById(id));
  if (!box || !pick[0]) return;
  document.documentElement.classList.add("js");
  const sides = [...box.children];
  const show = () => {
    const [left, right] = pick.map((one) => Number(one.value));
    sides.forEach((side, k) => { side.hidden = k !== left && k !== right; side.style.order = k === left ? 0 : 1; });
  };
  for (const one of pick) one.addEventListener("change", show);
  show();
})();
