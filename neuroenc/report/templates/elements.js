// What scripts of the pages share: nodes, numbers as text, and colours between those of a ramp.
const make = (tag, options = {}, ...children) => {
  const { text, ...rest } = options;
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(rest)) {
    if (key in node && key !== "list" && key !== "style") node[key] = value; else node.setAttribute(key, value);
  }
  if (text !== undefined) node.textContent = text;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
const said = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace(/^-(0(\.0*)?)$/, "$1").replace("-", "−"));
const mix = (ramp, t) => {
  const at = Math.min(Math.max(t, 0), 1) * (ramp.length - 1), k = Math.min(Math.floor(at), ramp.length - 2), f = at - k;
  const part = (hex, n) => parseInt(hex.slice(1 + 2 * n, 3 + 2 * n), 16);
  return `rgb(${[0, 1, 2].map((n) => Math.round(part(ramp[k], n) * (1 - f) + part(ramp[k + 1], n) * f)).join(",")})`;
};

// A share as a bar, with a tick such as its ceiling.
const bullet = (value, tick) => {
  const bar = make("span", { className: "bullet" }), fill = make("i");
  fill.style.width = `${100 * Math.min(Math.max(value ?? 0, 0), 1)}%`;
  bar.append(fill);
  if (tick !== null && tick !== undefined) {
    const line = make("u");
    line.style.left = `${100 * Math.min(Math.max(tick, 0), 1)}%`;
    bar.append(line);
  }
  return bar;
};

// Regions as rows, their voxels by accuracy: a map where there are no places, and a look at all regions otherwise.
const regionGrid = (records, regions) => {
  const groups = new Map(regions.map((name) => [name, []]));
  for (const record of records) {
    for (const name of record.rois.length ? record.rois : ["no region"]) {
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(record);
    }
  }
  for (const [name, members] of [...groups]) if (!members.length) groups.delete(name);
  const room = 1000 - 130;
  let cell = 32;
  const rows = (size) => [...groups.values()].reduce((sum, m) => sum + Math.ceil(m.length / Math.floor(room / size)), 0);
  while (cell > 4 && rows(cell) * cell + groups.size * 6 > 620) cell -= 1;
  const across = Math.floor(room / cell), x = [], y = [], voxel = [], labels = [];
  let top = 8;
  for (const [name, members] of groups) {
    labels.push({ text: name.length > 16 ? `${name.slice(0, 15)}…` : name, x: 120, y: top + cell / 2 + 5, align: "right" });
    members.sort((a, b) => (b.numbers.r ?? -9) - (a.numbers.r ?? -9));
    members.forEach((record, k) => {
      x.push(130 + ((k % across) + 0.5) * cell);
      y.push(top + (Math.floor(k / across) + 0.5) * cell);
      voxel.push(record.i);
    });
    top += Math.max(Math.ceil(members.length / across) * cell, 14) + 6;
  }
  const size = cell - Math.max(1, cell * 0.12);
  return { kind: "grid", name: "Grid", width: 1000, height: top + 4, shape: "cell",
           size: [size, size], x, y, voxel, labels, background: null };
};
