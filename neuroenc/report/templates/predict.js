// A picture goes to the server that sent this page; what comes back is drawn as a map and as regions.
// Text from data reaches the page through textContent alone.
(() => {
  const meta = JSON.parse(document.getElementById("meta").textContent);
  const $ = (id) => document.getElementById(id);
  // Below and above what the encoder predicts on average (ColorBrewer RdBu).
  const RAMP = ["#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b"];
  const opened = new Map(); // what the server says of each encoder
  const seen = []; // pictures of this session: name, the bytes sent, a thumbnail, and results by encoder
  let encoder = null, current = null, kind = null, queue = Promise.resolve();

  // -- the server --------------------------------------------------------------------------------------------------
  const ask = async (address, options = {}) => {
    let answer;
    try {
      answer = await fetch(address, options);
    } catch {
      throw new Error("The server does not answer: neuroenc serve may have ended.");
    }
    const found = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(found.error || `The server answered ${answer.status}.`);
    return found;
  };
  const floats = (text) => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let k = 0; k < raw.length; k++) bytes[k] = raw.charCodeAt(k);
    const view = new DataView(bytes.buffer);
    return Float32Array.from({ length: bytes.length / 4 }, (_, k) => view.getFloat32(4 * k, true));
  };
  const tell = (text, bad = false) => {
    $("state").textContent = text;
    $("state").className = bad ? "bad" : "";
  };
  // One thing after the other, as the server does; what fails is told and leaves what is shown.
  const during = (text, work) => {
    queue = queue.then(async () => {
      tell(text);
      await work();
    }).catch((error) => tell(error.message, true));
  };

  // -- what is shown -----------------------------------------------------------------------------------------------
  const result = (picture) => picture?.results.get(encoder?.name);
  const other = () => seen[Number($("other").value)] ?? null;
  const compared = () => ($("other").value !== "" && other() !== current && result(other()) ? other() : null);
  const least = () => ($("least").value === "" ? -Infinity : Number($("least").value));
  const well = (r) => r === null || r >= least(); // an r that is not known hides nothing
  const values = () => {
    const own = result(current)?.values, against = compared();
    return own && against ? own.map((value, v) => value - result(against).values[v]) : own;
  };
  const digits = () => Math.min(Math.max(2 - Math.floor(Math.log10(encoder.scale)), 0), 8);
  const units = () => encoder.units || "no units given";
  const centred = () => encoder.centre.some((value) => value !== 0);
  const describe = (v) => {
    const own = values(), facts = [encoder.rois[v].join(", "), encoder.place[v]].filter(Boolean).join(" · ");
    const held = encoder.r[v] === null ? "held-out r not recorded" : `held-out r ${said(encoder.r[v])}`;
    return [make("b", { text: Number.isFinite(own?.[v]) ? `${said(own[v], digits())} ${encoder.units}` : `Voxel ${encoder.voxel[v]}` }),
      ...(centred() && !compared() ? [make("span", { text: `mean ${said(encoder.centre[v], digits())} over reference pictures` })] : []),
      make("span", { text: `voxel ${encoder.voxel[v]}${facts ? ` · ${facts}` : ""}` }), make("span", { text: held })];
  };
  const map = new VoxelMap($("map"), $("tip"), { describe, pick: (v) => map.mark(v), announce: (text) => { $("where").textContent = text; } });
  const paint = () => {
    const own = values(), top = encoder.scale, from = (v) => (compared() ? 0 : encoder.centre[v]);
    map.paint(encoder.voxel.map((_, v) => (Number.isFinite(own?.[v]) ? mix(RAMP, (own[v] - from(v) + top) / (2 * top)) : "")), encoder.r.map(well));
  };
  const views = () => {
    if (!encoder.maps.some((one) => one.kind === kind)) kind = encoder.maps[0].kind;
    $("views").replaceChildren(...encoder.maps.map((one) => {
      const button = make("button", { type: "button", text: one.name, "aria-pressed": String(one.kind === kind) });
      button.addEventListener("click", () => { kind = one.kind; views(); paint(); });
      return button;
    }));
    map.show(encoder.maps.find((one) => one.kind === kind));
  };
  const legend = () => {
    const bar = make("i"), top = encoder.scale;
    bar.style.background = `linear-gradient(90deg, ${RAMP.join(",")})`;
    $("legend").replaceChildren(make("div", { className: "ramp" }, make("span", { text: said(-top, digits()) }), bar,
      make("span", { text: `${said(top, digits())} ${units()}${compared() ? ", difference" : centred() ? ", from the mean" : ""}` }),
      make("span", { className: "none", text: "not predicted well" })));
  };
  // A region's mean, from where bars start, over the range of what it is for most reference pictures.
  const span = (mean, from, range) => {
    const box = make("span", { className: "span" }), fill = make("i"), line = make("u"), top = encoder.regionScale;
    const at = (value) => 50 + 50 * Math.min(Math.max((value - from) / top, -1), 1);
    fill.style.left = `${Math.min(50, at(mean ?? from))}%`;
    fill.style.width = `${Math.abs(at(mean ?? from) - 50)}%`;
    fill.style.background = mean < from ? RAMP[1] : RAMP[7];
    box.append(fill);
    if (range) {
      line.style.left = `${at(range[0])}%`;
      line.style.width = `${at(range[1]) - at(range[0])}%`;
      box.append(line);
    }
    box.append(make("b"));
    return box;
  };
  const held = (row) => {
    if (row.median_r === null) return make("td", { text: "–" });
    const title = row.median_ceiling_r === null ? "" : `noise ceiling ${said(row.median_ceiling_r)}`;
    return make("td", { title }, bullet(row.median_r, row.median_ceiling_r));
  };
  const regions = () => {
    const own = result(current), against = compared();
    if (!own) { $("regions").replaceChildren(); return; }
    const heads = [["Region"], [against ? "Difference" : "Mean"], [encoder.units, "num"],
      ...(against ? [["this", "num"], ["other", "num"]] : [["SD", "num"], ["percentile", "num"]]), ["held-out r"], ["", "num"], ["voxels", "num"]];
    const rows = own.regions.map((row, k) => {
      const before = against && result(against).regions[k].mean;
      const mean = !against || row.mean === null ? row.mean : before === null ? null : row.mean - before;
      const number = (value, n = digits()) => make("td", { className: "num", text: said(value, n) });
      const shown = [make("th", { scope: "row", text: row.roi }),
        make("td", {}, span(mean, against ? 0 : encoder.middle[row.roi] ?? 0, against ? null : encoder.ranges[row.roi])),
        make("td", { className: "num" }, make("b", { text: said(mean, digits()) })),
        ...(against ? [number(row.mean), number(before)] : [number(row.sd), number(row.percentile, 0)]),
        held(row), number(row.median_r, 2), make("td", { className: "num", text: row.n_voxels.toLocaleString("en") })];
      return make("tr", { className: well(row.median_r) ? "" : "faint" }, ...shown);
    });
    $("regions").replaceChildren(make("caption", { className: "sr", text: `Predicted response by region, ${units()}` }),
      make("thead", {}, make("tr", {}, ...heads.map(([text, className]) => make("th", { scope: "col", text, className: className || "" })))),
      make("tbody", {}, ...rows));
  };
  const shown = () => {
    const figure = (picture, before) => {
      const found = result(picture), changes = found?.changes.length ? ` Read with: ${found.changes.join("; ")}.` : "";
      const size = found ? ` ${found.width} × ${found.height} pixels.` : "";
      return make("figure", {}, make("img", { src: picture.thumb, alt: picture.name }), make("figcaption", { text: `${before}${picture.name}.${size}${changes}` }));
    };
    $("shown").replaceChildren(...(current ? [figure(current, compared() ? "This: " : ""), ...(compared() ? [figure(compared(), "Other: ")] : [])]
      : [make("p", { className: "empty", text: "Choose, drop or paste a picture, or take one of those to try." })]));
  };
  const card = () => {
    const facts = encoder.facts.map(([name, text]) => make("div", {}, make("dt", { text: name }), make("dd", { text })));
    $("card").replaceChildren(make("h4", { text: "What a value means" }), ...encoder.meaning.map((text) => make("p", { text })),
      ...(facts.length ? [make("details", {}, make("summary", { text: `About this encoder${encoder.title ? `: ${encoder.title}` : ""}` }), make("dl", { className: "pairs" }, ...facts))] : []));
    $("remarks").replaceChildren(...encoder.remarks.map((text) => make("p", { className: "remark", text })));
  };
  const strip = () => {
    $("seen").replaceChildren(...seen.map((picture) => {
      const button = make("button", { type: "button", title: picture.name, "aria-pressed": String(picture === current) }, make("img", { src: picture.thumb, alt: picture.name }));
      button.addEventListener("click", () => during("Predicting …", () => show(picture)));
      return button;
    }));
    const kept = $("other").value;
    $("other").replaceChildren(make("option", { value: "", text: "nothing" }),
      ...seen.map((picture, k) => make("option", { value: String(k), text: `${k + 1}. ${picture.name}`, disabled: picture === current })));
    $("other").value = kept;
  };
  const redraw = () => { legend(); paint(); regions(); shown(); strip(); $("save").disabled = !current; };

  // -- what the reader does ----------------------------------------------------------------------------------------
  const predict = async (picture) => {
    if (!encoder) throw new Error("No encoder is open. Next step: choose another, or look at what neuroenc serve printed.");
    if (!picture || result(picture)) return;
    const found = await ask(`predict?encoder=${encodeURIComponent(encoder.name)}`, { method: "POST", body: picture.bytes, headers: { "Content-Type": "application/octet-stream" } });
    picture.thumb = found.picture;
    picture.results.set(encoder.name, { ...found, values: floats(found.values) });
  };
  const show = async (picture) => {
    await predict(picture);
    await predict($("other").value === "" ? null : other());
    if (!seen.includes(picture)) seen.push(picture);
    current = picture;
    redraw();
    const regions = result(picture).regions, best = regions.reduce((a, b) => (b.mean > (a.mean ?? -Infinity) ? b : a));
    tell(`${picture.name}: ${best.roi}${regions.length > 1 ? " responds most" : ""}, ${said(best.mean, digits())} ${encoder.units}.`);
    document.documentElement.dataset.shown = String(seen.indexOf(picture));
  };
  const take = (bytes, name) => during(`Predicting the responses to ${name} …`, async () => {
    if (bytes.size > meta.mostBytes) {
      throw new Error(`${name} has ${(bytes.size / 2 ** 20).toFixed(1)} MB; at most ${meta.mostBytes / 2 ** 20} MB are read. Next step: make it smaller.`);
    }
    await show({ name, bytes, thumb: "", results: new Map() });
  });
  const open = (name) => during(`Opening ${name} …`, async () => {
    if (!opened.has(name)) {
      const found = await ask(`encoder?name=${encodeURIComponent(name)}`);
      found.rois = found.roi.map((text) => text.split(";").filter(Boolean));
      const records = found.voxel.map((_, i) => ({ i, rois: found.rois[i], numbers: { r: found.r[i] } }));
      found.maps = [...found.maps, regionGrid(records, found.regions)];
      opened.set(name, found);
    }
    encoder = opened.get(name);
    await predict(current);
    await predict($("other").value === "" ? null : other());
    map.mark(-1);
    // Colours first: a map is drawn when it is shown, and holds as many as it has voxels.
    paint();
    views();
    card();
    redraw();
    tell(current ? "" : `${encoder.voxel.length.toLocaleString("en")} voxels.`);
    document.documentElement.dataset.ready = "yes";
  });
  const save = () => {
    const cell = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const done = seen.filter(result);
    const lines = [["voxel", "roi", "place", "r", ...done.map((picture, k) => `${k + 1} ${picture.name}`)]];
    encoder.voxel.forEach((name, v) => lines.push([name, encoder.roi[v], encoder.place[v], String(encoder.r[v] ?? ""), ...done.map((p) => (Number.isFinite(result(p).values[v]) ? String(result(p).values[v]) : ""))]));
    const address = URL.createObjectURL(new Blob([lines.map((line) => line.map(cell).join(",")).join("\n"), "\n"], { type: "text/csv" }));
    make("a", { href: address, download: `predicted-${encoder.name.replace(/[^\w.-]+/g, "-")}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  };
  const takeAll = (files) => {
    for (const file of [...files]) take(file, file.name || "pasted picture");
    if (!files.length) tell("No file came. Next step: save the picture and choose its file.", true);
  };

  document.documentElement.classList.add("js");
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    takeAll($("file").files);
    $("file").value = "";
  });
  addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault(); // anywhere on the page: a browser would open the picture in its place
    $("drop").classList.remove("over");
    takeAll(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => takeAll(event.clipboardData.files));
  $("samples").append(...meta.samples.map(({ name, src }) => {
    const button = make("button", { type: "button", title: name }, make("img", { src, alt: name }));
    button.addEventListener("click", () => {
      const known = seen.find((picture) => picture.name === name);
      const raw = atob(src.split(",")[1]);
      if (known) during("Predicting …", () => show(known));
      else take(new Blob([Uint8Array.from(raw, (c) => c.charCodeAt(0))]), name);
    });
    return button;
  }));
  $("encoder").addEventListener("change", () => open($("encoder").value));
  $("least").addEventListener("input", () => { if (encoder) { paint(); regions(); } });
  $("other").addEventListener("change", () => during("Predicting …", async () => { await predict(other()); redraw(); tell(""); }));
  $("save").addEventListener("click", save);
  open(meta.encoders[0]);
})();
