// One map of one subject on a canvas: dots on the cortex, cells of slices, or a grid of regions.
class VoxelMap {
  constructor(canvas, tip, { describe, pick, announce }) {
    Object.assign(this, { canvas, tip, describe, pick, announce });
    this.view = null;
    this.current = this.cursor = -1;
    this.images = new Map();
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
    canvas.addEventListener("mousemove", (event) => this.hover(event));
    canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
    canvas.addEventListener("click", (event) => {
      const p = this.at(event);
      if (p >= 0) this.pick(this.view.voxel[p]);
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { tip.hidden = true; this.cursor = -1; this.draw(); });
  }

  show(view) {
    this.view = view;
    this.cursor = -1;
    this.tip.hidden = true;
    if (view.background && !this.images.has(view.background)) {
      const image = new Image();
      this.images.set(view.background, image);
      image.addEventListener("load", () => this.draw());
      image.src = view.background;
    }
    this.draw();
  }

  // colours: CSS colour of each voxel, or "" for one without a value; shown: whether it passes the filter.
  paint(colours, shown) {
    this.colours = colours;
    this.shown = shown;
    this.draw();
  }

  mark(voxel) {
    this.current = voxel;
    this.draw();
  }

  draw() {
    const view = this.view;
    if (!view || !this.colours) return;
    const width = this.canvas.parentElement.clientWidth;
    if (!width) return;
    const scale = (this.scale = width / view.width), dense = Math.max(window.devicePixelRatio || 1, 2);
    this.canvas.style.height = `${view.height * scale}px`;
    this.canvas.width = Math.round(width * dense);
    this.canvas.height = Math.round(view.height * scale * dense);
    const c = this.canvas.getContext("2d");
    c.setTransform(scale * dense, 0, 0, scale * dense, 0, 0);
    const image = view.background && this.images.get(view.background);
    if (image && image.complete && image.naturalWidth) c.drawImage(image, 0, 0, view.width, view.height);
    c.fillStyle = "#f4f6f7";
    for (const [x, y, w, h] of view.frames || []) c.fillRect(x, y, w, h);
    c.fillStyle = "#5c6670";
    c.font = `${12.5 / scale}px system-ui, sans-serif`;
    for (const label of view.labels) {
      c.textAlign = label.align || "center";
      c.fillText(label.text, label.x, label.y);
    }
    const dot = view.shape === "dot";
    const [w, h] = dot ? [] : view.size;
    const r = dot ? Math.max(view.size, 1.7 / scale) : 0;
    const put = (p, grow = 0) => {
      if (dot) {
        c.beginPath();
        c.arc(view.x[p], view.y[p], r + grow, 0, 7);
      } else {
        c.beginPath();
        c.rect(view.x[p] - w / 2 - grow, view.y[p] - h / 2 - grow, w + 2 * grow, h + 2 * grow);
      }
    };
    const late = [];
    c.lineWidth = 0.9 / scale;
    for (let p = 0; p < view.voxel.length; p++) {
      const v = view.voxel[p], colour = this.colours[v];
      if (this.shown[v] && colour) { late.push(p); continue; }
      put(p, dot ? -0.25 * r : 0);
      c.fillStyle = this.shown[v] ? "#fbfcfc" : dot ? "rgba(150,160,168,.35)" : "#e3e7ea";
      c.fill();
      c.strokeStyle = this.shown[v] ? "#a9b2ba" : "#d5dbdf";
      if (this.shown[v]) c.stroke();
    }
    c.strokeStyle = "rgba(255,255,255,.75)";
    c.lineWidth = 0.5 / scale;
    for (const p of late) {
      put(p);
      c.fillStyle = this.colours[view.voxel[p]];
      c.fill();
      if (dot) c.stroke();
    }
    const ring = (p, colour, grow) => {
      put(p, grow / scale);
      c.strokeStyle = "#fff"; c.lineWidth = 4.5 / scale; c.stroke();
      c.strokeStyle = colour; c.lineWidth = 2 / scale; c.stroke();
    };
    for (let p = 0; p < view.voxel.length; p++) if (view.voxel[p] === this.current) ring(p, "#1d2329", 3.5);
    if (this.cursor >= 0) ring(this.cursor, "#2b6ca3", 3.5);
  }

  // Dot or cell under the pointer, -1 for none; those that pass the filter are taken first.
  at(event) {
    const view = this.view, box = this.canvas.getBoundingClientRect();
    if (!view) return -1;
    const x = (event.clientX - box.left) / this.scale, y = (event.clientY - box.top) / this.scale;
    const reach = view.shape === "dot" ? Math.max(view.size * 1.6, 7 / this.scale)
      : Math.max(view.size[0], view.size[1], 6 / this.scale) * 0.75;
    let best = -1, least = Infinity;
    for (let p = 0; p < view.voxel.length; p++) {
      const away = Math.hypot(view.x[p] - x, view.y[p] - y);
      const cost = away + (this.shown[view.voxel[p]] ? 0 : reach / 2);
      if (away <= reach && cost < least) { best = p; least = cost; }
    }
    return best;
  }

  hover(event) {
    const p = this.at(event);
    if (p < 0) { this.tip.hidden = true; return; }
    this.point(p);
  }

  point(p) {
    const { tip, view, scale } = this;
    tip.replaceChildren(...this.describe(view.voxel[p]));
    tip.hidden = false;
    // Placed in the window, not in the map: a tip that reached over the map's edge would make it scroll, and jump.
    const box = this.canvas.getBoundingClientRect();
    const x = box.left + view.x[p] * scale, y = box.top + view.y[p] * scale;
    tip.style.left = `${Math.max(4, Math.min(x + 14, document.documentElement.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${y > tip.offsetHeight + 16 ? y - tip.offsetHeight - 12 : y + 14}px`;
  }

  key(event) {
    const view = this.view, step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!view) return;
    const open = [...view.voxel.keys()].filter((p) => this.shown[view.voxel[p]]);
    if ((event.key === "Enter" || event.key === " ") && this.cursor >= 0) {
      event.preventDefault();
      this.pick(view.voxel[this.cursor]);
      return;
    }
    if (!step || !open.length) return;
    event.preventDefault();
    let next = this.cursor;
    if (next < 0) {
      next = open.find((p) => view.voxel[p] === this.current) ?? open[0];
    } else {
      let least = Infinity;
      for (const p of open) {
        const dx = view.x[p] - view.x[this.cursor], dy = view.y[p] - view.y[this.cursor];
        const along = dx * step[0] + dy * step[1], across = Math.abs(dx * step[1]) + Math.abs(dy * step[0]);
        if (along > 0.01 && along + 2.5 * across < least) { least = along + 2.5 * across; next = p; }
      }
    }
    this.cursor = next;
    this.draw();
    this.point(next);
    const box = this.canvas.parentElement.parentElement;
    const y = view.y[next] * this.scale;
    if (y < box.scrollTop + 30 || y > box.scrollTop + box.clientHeight - 30) box.scrollTop = y - box.clientHeight / 2;
    this.announce(this.tip.textContent);
  }
}
