// The index: loads the data beside the page, keeps map, list and panel in step with filter and address.
// Text from data reaches the page through textContent alone.
(() => {
  const meta = JSON.parse(document.getElementById("meta").textContent);
  const $ = (id) => document.getElementById(id);
  const VERDICTS = ["supported", "uncertain", "unsupported"];
  const RAMPS = {
    value: ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725"],
    doubt: ["#dfe5ea", "#e8cdb5", "#e3a877", "#d57f42", "#b8571b", "#8c3a08", "#5c2303"],
  };
  const OTHER = "#9aa4ad";

  if (typeof DecompressionStream === "undefined") return; // the still page serves browsers before 2023

  // -- assets ------------------------------------------------------------------------------------------------------
  const waiting = new Map();
  window.neuroencData = (name, packed) => waiting.get(name)?.(packed);
  const loaded = new Map();
  const load = (file) => {
    if (!loaded.has(file)) {
      loaded.set(file, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        waiting.set(file.replace(/\.js$/, ""), resolve);
        script.onerror = () => reject(new Error(`${file} is missing beside this page`));
        script.src = `assets/${file}`;
        document.head.append(script);
        script.onload = () => script.remove();
      }).then((packed) => {
        const text = atob(packed), bytes = new Uint8Array(text.length);
        for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
        return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
      }));
    }
    return loaded.get(file);
  };

  const percent = (value) => (value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`);

  // -- voxels ------------------------------------------------------------------------------------------------------
  const voxels = []; // all subjects, one record each
  const subjects = meta.subjects.map((subject) => ({ ...subject, records: [], maps: [], ready: false }));
  const byId = new Map();
  let search = null, vectors = null, onMap = 0, current = null, found = [], limit = 60, query = { terms: [], phrases: [] }, ranked = null;

  const take = (subject, data) => {
    const n = data.voxel.length;
    for (let i = 0; i < n; i++) {
      const numbers = {};
      for (const key of Object.keys(data.numbers)) numbers[key] = data.numbers[key][i];
      const place = data.place.vertex ? `${data.place.hemi[i]} vertex ${data.place.vertex[i]}`
        : data.place.i ? `i ${data.place.i[i]}, j ${data.place.j[i]}, k ${data.place.k[i]}` : "";
      const record = {
        s: subjects.indexOf(subject), i, n: voxels.length, id: String(data.voxel[i]), numbers, place,
        rois: data.rois[data.roi[i]].split(";").filter(Boolean), label: data.label[i],
        texts: data.captions[i].map((k) => data.texts[k]), scores: data.scores[i], ranks: data.ranks[i],
        captioned: data.captioned[i] === 1, reason: data.reasons[data.reason[i]],
        fails: data.fails[data.fail[i]],
      };
      voxels.push(record);
      subject.records.push(record);
      byId.set(record.id, record);
    }
    subject.maps = [...data.maps, regionGrid(subject.records, meta.regions)];
    subject.ready = true;
    search = null;
  };

  // -- colours -----------------------------------------------------------------------------------------------------
  const choices = [
    ...meta.numbers.filter((item) => item.key !== "q_value").map((item) => ({ ...item, number: true })),
    ...(meta.regions.length ? [{ key: "roi", name: "Region" }] : []),
    ...(meta.labels.length ? [{ key: "label", name: meta.labelKind[0].toUpperCase() + meta.labelKind.slice(1) }] : []),
  ];
  const ramp = (choice) => (choice.key === "unsupported" ? RAMPS.doubt : RAMPS.value);
  const regionColour = new Map(meta.regions.map((name, k) => [name, meta.regionColours[k]]));
  const colourOf = (record, choice) => {
    if (choice.key === "roi") return record.rois.length ? regionColour.get(record.rois[0]) || OTHER : "";
    if (choice.key === "label") return record.label < 0 ? "" : meta.labelColours[record.label] || OTHER;
    const value = record.numbers[choice.key];
    return value === null || value === undefined ? "" : mix(ramp(choice), (value - choice.low) / (choice.high - choice.low));
  };
  const legend = (choice) => {
    const box = $("legend");
    box.replaceChildren();
    if (choice.number) {
      const bar = make("i");
      bar.style.background = `linear-gradient(90deg, ${ramp(choice).join(",")})`;
      const digits = Math.abs(choice.high) < 10 ? 2 : 0;
      box.append(make("div", { className: "ramp" }, make("span", { text: said(choice.low, digits) }), bar,
        make("span", { text: said(choice.high, digits) }), make("span", { className: "none", text: "no value" })));
      return;
    }
    const names = make("ul", { className: "names" });
    const entries = choice.key === "roi" ? meta.regions.map((name) => [name, regionColour.get(name)])
      : meta.labels.slice(0, meta.labelColours.length).map((name, k) => [name, meta.labelColours[k]]);
    for (const [name, colour] of entries.slice(0, 24)) {
      const swatch = make("i");
      swatch.style.background = colour;
      const button = make("button", { type: "button", title: `Show ${name}` }, swatch, name);
      button.addEventListener("click", () => {
        if (choice.key === "roi") $("region").value = $("region").value === name ? "" : name;
        else $("search").value = $("search").value === name ? "" : name;
        refresh();
      });
      names.append(make("li", {}, button));
    }
    if (choice.key === "label" && meta.labels.length > meta.labelColours.length) {
      const swatch = make("i");
      swatch.style.background = OTHER;
      names.append(make("li", {}, make("button", { type: "button", disabled: true }, swatch, `${meta.labels.length - meta.labelColours.length} others`)));
    }
    box.append(names);
  };

  // -- map ---------------------------------------------------------------------------------------------------------
  const chosen = () => choices[Number($("colour").value)] || choices[0];
  const describe = (i) => {
    const record = subjects[onMap].records[i];
    const head = make("b", { text: `Voxel ${record.id}` });
    const facts = [record.rois.join(", "), `r ${said(record.numbers.r)}`].filter(Boolean).join(" · ");
    return [head, ` ${facts} `, make("span", { text: record.texts[0] || record.reason || "no caption" }),
      ...(record.fails ? [make("span", { text: "† not above its control" })] : [])];
  };
  const map = new VoxelMap($("map"), $("tip"), {
    describe,
    pick: (i) => select(subjects[onMap].records[i]),
    announce: (text) => { $("where").textContent = text; },
  });
  let kind = null;
  const views = () => {
    const maps = subjects[onMap].maps;
    if (!maps.some((one) => one.kind === kind)) kind = maps[0].kind;
    $("views").replaceChildren(...maps.map((one) => {
      const button = make("button", { type: "button", text: one.name, "aria-pressed": String(one.kind === kind) });
      button.addEventListener("click", () => { kind = one.kind; views(); });
      return button;
    }));
    map.show(maps.find((one) => one.kind === kind));
  };
  const paint = () => {
    const records = subjects[onMap].records, choice = chosen();
    const inside = new Set(found.map((record) => record.n));
    map.paint(records.map((r) => colourOf(r, choice)), records.map((r) => inside.has(r.n)));
    map.mark(current && current.s === onMap ? current.i : -1);
  };
  const turn = (s) => {
    if (s === onMap || !subjects[s]?.ready) return;
    onMap = s;
    views();
  };

  // -- filter and list ---------------------------------------------------------------------------------------------
  const sorts = {
    best: ["Best match", (r) => (ranked ? -ranked.get(r.n).at : r.numbers.r ?? -9)],
    r: ["Accuracy", (r) => r.numbers.r ?? -9],
  };
  for (const item of meta.numbers) {
    if (item.key === "unsupported") sorts[item.key] = ["Unsupported phrases", (r) => r.numbers.unsupported ?? -9];
    if (item.key.startsWith("stability:")) sorts[item.key] = [item.name, (r) => r.numbers[item.key] ?? -9];
    if (item.key === "rho") sorts.rho = [item.name, (r) => r.numbers.rho ?? -9];
  }
  const refresh = () => {
    const text = $("search").value.trim();
    ranked = null;
    query = { terms: [], phrases: [] };
    if (text) {
      search ??= new CaptionSearch(voxels, vectors);
      query = search.parse(text);
      ranked = search.rank(text);
      if (byId.has(text)) ranked = new Map([[byId.get(text).n, { places: [0, 0] }], ...ranked]);
      [...ranked.values()].forEach((entry, at) => { entry.at = at; });
    }
    const subject = $("subject").value, region = $("region").value, verdict = $("verdict").value;
    const least = $("least").value === "" ? -Infinity : Number($("least").value);
    found = voxels.filter((r) => (subject === "" || r.s === Number(subject))
      && (region === "" || r.rois.includes(region))
      && (least === -Infinity || (r.numbers.r ?? -Infinity) >= least)
      && (!ranked || ranked.has(r.n))
      && (verdict === "" || (verdict === "captioned" && r.captioned) || (verdict === "gated" && !r.captioned)
        || (verdict === "clean" && r.numbers.unsupported === 0) || (verdict === "unsupported" && r.numbers.unsupported > 0)));
    const value = (sorts[$("sort").value] || sorts.best)[1];
    const key = new Map(found.map((r) => [r, value(r)]));
    // Held-back voxels last: they have nothing to say.
    found.sort((a, b) => (b.texts.length > 0) - (a.texts.length > 0) || key.get(b) - key.get(a) || (b.numbers.r ?? -9) - (a.numbers.r ?? -9));
    limit = 60;
    if (subject !== "") turn(Number(subject));
    list();
    paint();
  };
  const hits = (text) => {
    const stems = new Set(query.terms.flat());
    if (!stems.size) return [text];
    const out = [];
    let at = 0;
    for (const match of text.matchAll(/[\p{L}\p{N}]+/gu)) {
      if (!stems.has(CaptionSearch.stem(match[0].toLowerCase()))) continue;
      out.push(text.slice(at, match.index), make("span", { className: "hit", text: match[0] }));
      at = match.index + match[0].length;
    }
    return [...out, text.slice(at)];
  };
  // What a reader can do where nothing is found: the words that captions hold, and the filters that are in the way.
  const nothing = () => {
    const words = query.terms.flat(), unknown = search ? words.filter((word) => !search.words.has(word)) : [];
    const filters = ["region", "least", "verdict"].filter((id) => $(id).value !== "");
    const item = make("p", { className: "none-found" }, unknown.length ? `No caption holds ${unknown.map((w) => `“${w}”`).join(", ")}. `
      : words.length ? "No voxel fits these words and filters. " : "No voxel fits these filters. ");
    const offer = (text, change) => {
      const button = make("button", { type: "button", text });
      button.addEventListener("click", () => { change(); refresh(); });
      item.append(button);
    };
    if (filters.length) offer("Without filters", () => { for (const id of filters) $(id).value = ""; });
    const near = [...new Set(unknown.flatMap((word) => search.list.filter((other) => other.slice(0, 3) === word.slice(0, 3))))].slice(0, 5);
    const common = search ? [...search.words].sort((a, b) => b[1].size - a[1].size).map(([word]) => word).filter((word) => word.length > 3).slice(0, 5) : [];
    if (words.length) item.append(make("br"), near.length ? "Alike: " : "Frequent: ");
    if (words.length) for (const word of near.length ? near : common) offer(word, () => { $("search").value = word; });
    return item;
  };
  // Which of the two rankings found a voxel, and at what place.
  const by = (places) => {
    const named = ["words", "vectors"].flatMap((name, k) => (places[k] ? [[name, places[k]]] : []));
    return make("span", { className: "by", text: named.map(([name]) => ` ${name}`).join(" +"), title: named.map(([name, at]) => `place ${at} by ${name}`).join(", ") });
  };
  const list = () => {
    const loading = subjects.some((s) => !s.ready) ? " (still reading)" : "";
    $("count").textContent = `${found.length.toLocaleString("en")} of ${voxels.length.toLocaleString("en")} voxels${loading}`;
    const stems = new Set(query.terms.flat());
    $("list").replaceChildren(...found.slice(0, limit).map((record) => {
      // Where the best caption does not hold the words, the one that does is shown.
      let place = 0;
      if (stems.size) {
        const counts = record.texts.map((text) => CaptionSearch.tokens(text).filter((word) => stems.has(word)).length);
        place = Math.max(0, counts.indexOf(Math.max(...counts, 0)));
      }
      const caption = record.texts.length ? make("b", {}, ...hits(record.texts[place]))
        : make("span", { className: "why", text: record.reason || "no caption" });
      if (record.fails && place === 0 && record.texts.length) caption.append(make("span", { className: "fail", title: `not above its control: ${record.fails}`, text: " † fails its control" }));
      if (place > 0) caption.append(make("span", { className: "why", text: ` (caption ${record.ranks[place]})` }));
      if (ranked && vectors) caption.append(by(ranked.get(record.n).places));
      const button = make("button", { type: "button", className: "row", "aria-current": String(record === current) },
        make("span", { className: "muted", text: record.id }),
        make("span", { className: "muted", text: [subjects.length > 1 ? subjects[record.s].name : "", record.rois.join(", ")].filter(Boolean).join(" ") }),
        make("span", { className: "num", text: said(record.numbers.r) }), caption);
      button.addEventListener("click", () => select(record));
      button.record = record;
      return make("li", {}, button);
    }));
    $("hint").replaceChildren(...(found.length || !voxels.length ? [] : [nothing()]));
    $("more").hidden = found.length <= limit;
  };

  // -- panel -------------------------------------------------------------------------------------------------------
  const about = (phrase) => {
    const [, , , verdict, images, predicted, percentile] = phrase;
    const parts = [VERDICTS[verdict]];
    if (images !== null) parts.push(`in ${percent(images)} of its images`);
    if (predicted !== null) parts.push(`predicted response ${said(predicted)}`);
    if (percentile !== null) parts.push(`percentile ${rank(percentile)}`);
    return parts.join("; ");
  };
  const rank = (value) => (value === null ? "–" : Math.round(100 * value).toString());
  const marked = (text, phrases) => {
    const out = [];
    let at = 0;
    for (const phrase of [...phrases].sort((a, b) => a[1] - b[1])) {
      const start = Math.max(phrase[1], at), end = phrase[2];
      if (end <= start) continue;
      const words = text.slice(start, end);
      const note = about(phrase);
      out.push(text.slice(at, start), make("mark", { className: VERDICTS[phrase[3]], tabIndex: 0, title: note, text: words, "aria-label": `${words}: ${note}` }));
      at = end;
    }
    return [...out, text.slice(at)];
  };
  const meter = (name, value, tick, note) => {
    return make("tr", {}, make("th", { scope: "row", text: name }), make("td", {}, bullet(value, tick)),
      make("td", { className: "num" }, make("b", { text: note[0] }), note[1] ? ` ${note[1]}` : ""));
  };
  const phraseTable = (text, phrases) => {
    const body = make("tbody");
    for (const phrase of phrases) {
      body.append(make("tr", {}, make("td", { text: text.slice(phrase[1], phrase[2]) }),
        make("td", {}, make("span", { className: `dot ${VERDICTS[phrase[3]]}` }), VERDICTS[phrase[3]]),
        make("td", { className: "num", text: percent(phrase[4]) }), make("td", { className: "num", text: said(phrase[5]) }),
        make("td", { className: "num", text: rank(phrase[6]) })));
    }
    const heads = [["phrase"], ["verdict"], ["in images", "num"], ["predicted", "num"], ["percentile", "num"]];
    return make("table", { className: "phrases" },
      make("thead", {}, make("tr", {}, ...heads.map(([name, c]) => make("th", { scope: "col", text: name, className: c || "" })))), body);
  };
  // What the voxel makes of the reader's own words, which stay from voxel to voxel.
  let asked = "";
  const asking = (record) => {
    const input = make("input", { type: "search", id: "ask", autocomplete: "off", spellcheck: false, value: asked, placeholder: "words of yours" });
    const body = make("tbody"), note = make("p", { className: "sub" });
    const answer = () => {
      asked = input.value;
      body.replaceChildren();
      note.textContent = "";
      if (!asked.trim()) return;
      search ??= new CaptionSearch(voxels, vectors);
      const told = search.say(asked, record.n);
      const lost = told.unknown.length ? `Not known, and left out: ${told.unknown.join(", ")}. ` : "";
      if (told.known.length) {
        const row = (name, share, of) => meter(name, share, 0.5, [`${percent(share)}`, of]);
        body.append(row("Above words", told.words, `of ${vectors.texts.length.toLocaleString("en")}`));
        if (told.voxels !== null) body.append(row("Above voxels", told.voxels, `of ${(vectors.rows.length - 1).toLocaleString("en")}`));
      }
      note.textContent = lost + (told.known.length ? `Cosine ${said(told.cosine)} with the voxel’s weights.` : "No word of these is known.");
    };
    input.addEventListener("input", answer);
    answer();
    return [make("h4", {}, make("label", { htmlFor: "ask", text: "What would this voxel say to …" })), input,
      make("table", { className: "meters" }, body), note];
  };
  let last = null;
  const panel = (record, details) => {
    last = [record, details];
    const box = $("panel");
    const step = (by) => {
      const at = found.indexOf(record), next = found[at + by];
      const button = make("button", { type: "button", text: by < 0 ? "‹ Prev" : "Next ›", disabled: !next, title: by < 0 ? "Previous voxel of the list" : "Next voxel of the list" });
      button.addEventListener("click", () => { select(next); $("panel").querySelectorAll(".step button")[by < 0 ? 0 : 1]?.focus(); });
      return button;
    };
    const where = [subjects[record.s].name, record.place].filter(Boolean).join(" · ");
    const sub = make("p", { className: "sub" });
    record.rois.forEach((name) => {
      sub.append(meta.pages[name] ? make("a", { href: meta.pages[name], text: name }) : name, " · ");
    });
    sub.append(where);
    const nodes = [make("h3", {}, make("span", { text: `Voxel ${record.id}` }), make("span", { className: "step" }, step(-1), step(1))), sub];
    if (!record.texts.length) {
      nodes.push(make("p", { className: "empty", text: `No caption: ${record.reason || "none was found"}.` }));
    } else {
      const lines = make("ol", { className: "said" });
      record.texts.forEach((text, k) => {
        const own = details ? details.phrases.filter((phrase) => phrase[0] === record.ranks[k]) : [];
        lines.append(make("li", {}, make("span", { className: "score", title: "score of the decoder", text: said(record.scores[k]) }),
          make("span", { className: "text" }, ...(own.length ? marked(text, own) : [text]))));
      });
      nodes.push(lines, make("p", { className: "key" }, "Number: score of the caption.", ...(meta.phrases ? [" Phrases: ",
        ...VERDICTS.flatMap((verdict, k) => [make("span", { className: `as-mark ${verdict}`, text: verdict }), k < 2 ? ", " : "."])] : [])));
      if (details?.folds?.length) {
        const parts = details.folds.reduce((sum, [, n]) => sum + n, 0);
        nodes.push(make("details", {}, make("summary", { text: `From ${parts} disjoint parts of the bank` }),
          make("ul", {}, ...details.folds.map(([text, n]) => make("li", { text: `${text} (${n})` })))));
      }
      if (record.fails) nodes.push(make("p", { className: "fails", text: `The best caption is not above its control: ${record.fails}.` }));
    }
    const numbers = record.numbers, rows = [];
    const of = (value, word) => (value === null || value === undefined ? "" : `${word} ${said(value)}`);
    rows.push(meter("Accuracy, r", numbers.r, numbers.ceiling, [said(numbers.r), of(numbers.ceiling, "of ceiling")]));
    for (const one of meta.stability) {
      const value = numbers[`stability:${one}`], none = numbers[`stability:${one}_null`];
      if (value !== null && value !== undefined) rows.push(meter(`Stability, ${one}`, value, none, [said(value), of(none, "shuffled")]));
    }
    for (const [name, before] of [["Sentence score, ρ", ""], ["Image score, ρ", "image_"]]) {
      const value = numbers[`${before}rho`], within = numbers[`${before}shuffled_within_roi`];
      const other = within ?? numbers[`${before}shuffled`];
      if (value !== null && value !== undefined) rows.push(meter(name, value, other, [said(value), of(other, within !== undefined ? "in region" : "shuffled")]));
    }
    nodes.push(make("table", { className: "meters" }, make("tbody", {}, ...rows)));
    if (vectors?.rows.includes(record.n)) nodes.push(...asking(record));
    if (details?.evidence.length) {
      const thumbs = make("div", { className: "thumbs" });
      for (const [k, predicted, heat] of details.evidence) {
        const shown = details.stimuli[k];
        const figure = make("figure");
        if (shown.src) figure.append(make("img", { src: shown.src, alt: shown.caption || `stimulus ${shown.id}`, title: `${shown.id}${shown.caption ? `: ${shown.caption}` : ""}` }));
        else figure.append(make("span", { className: "id", text: shown.id }));
        if (shown.src && heat) figure.append(make("img", { className: "heat", src: heat, alt: "", title: "orange: places that drive the voxel" }));
        figure.append(make("figcaption", {}, make("b", { text: said(predicted) }), make("span", { text: shown.caption || "" })));
        thumbs.append(figure);
      }
      nodes.push(make("h4", { text: "Images with the highest predicted response" }), thumbs);
      if (meta.licence) nodes.push(make("p", { className: "credit", text: `Images: ${meta.licence}` }));
    }
    const first = details ? details.phrases.filter((phrase) => phrase[0] === record.ranks[0]) : [];
    if (first.length) {
      nodes.push(make("h4", { text: "Phrases of the best caption" }), phraseTable(record.texts[0], first));
      const others = record.texts.slice(1).map((text, k) => [text, details.phrases.filter((phrase) => phrase[0] === record.ranks[k + 1])]).filter(([, own]) => own.length);
      if (others.length) {
        nodes.push(make("details", {}, make("summary", { text: "Phrases of the other captions" }), ...others.map(([text, own]) => phraseTable(text, own))));
      }
    }
    box.replaceChildren(...nodes);
    box.scrollTop = 0;
  };
  const select = (record, focus = false) => {
    if (!record) return;
    current = record;
    turn(record.s);
    history.replaceState(null, "", `#voxel=${encodeURIComponent(record.id)}`);
    paint();
    for (const button of document.querySelectorAll(".row")) button.setAttribute("aria-current", String(button.record === record));
    panel(record, null);
    const file = subjects[record.s].chunks[Math.floor(record.i / meta.chunk)];
    load(file).then((chunk) => {
      if (current !== record) return;
      const k = record.i % meta.chunk;
      panel(record, { evidence: chunk.evidence[k], phrases: chunk.phrases[k], folds: chunk.folds[k], stimuli: chunk.stimuli });
    }).catch((error) => $("panel").append(make("p", { className: "empty", text: error.message })));
    if (focus) $("panel").focus({ preventScroll: true });
  };

  // -- address -----------------------------------------------------------------------------------------------------
  const follow = () => {
    const match = /^#(voxel|roi|subject|search)=(.*)$/.exec(location.hash);
    if (!match) return false;
    let value = match[2];
    try { value = decodeURIComponent(value); } catch { /* a stray % is part of the name */ }
    if (match[1] === "voxel") {
      if (!byId.has(value)) return false;
      if (byId.get(value) !== current) select(byId.get(value));
      return true;
    }
    if (match[1] === "roi" && meta.regions.includes(value)) $("region").value = value;
    if (match[1] === "subject") $("subject").value = String(Math.max(0, subjects.findIndex((s) => s.name === value)));
    if (match[1] === "search") $("search").value = value;
    refresh();
    return false;
  };

  // -- start -------------------------------------------------------------------------------------------------------
  document.documentElement.classList.add("js");
  $("region").append(make("option", { value: "", text: "all" }), ...meta.regions.map((name) => make("option", { value: name, text: name })));
  $("subject").append(...(subjects.length > 1 ? [make("option", { value: "", text: "all" })] : []),
    ...subjects.map((s, k) => make("option", { value: String(k), text: s.name || "all" })));
  $("subject-label").hidden = subjects.length < 2;
  $("subject").value = subjects.length > 1 ? "" : "0";
  $("colour").append(...choices.map((choice, k) => make("option", { value: String(k), text: choice.name })));
  $("sort").append(...Object.entries(sorts).map(([key, [name]]) => make("option", { value: key, text: name })));
  $("panel").append(make("p", { className: "empty", text: "Reading voxels …" }));
  let delay = 0;
  $("search").addEventListener("input", () => { clearTimeout(delay); delay = setTimeout(refresh, 120); });
  for (const id of ["subject", "region", "verdict", "sort"]) $(id).addEventListener("change", refresh);
  $("least").addEventListener("input", refresh);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    refresh();
    if (found[0]) select(found[0], true);
  });
  $("clear").addEventListener("click", () => {
    for (const id of ["search", "region", "least", "verdict"]) $(id).value = "";
    $("subject").value = subjects.length > 1 ? "" : "0";
    refresh();
  });
  $("colour").addEventListener("change", () => { legend(chosen()); paint(); });
  $("more").addEventListener("click", () => { limit += 200; list(); });
  addEventListener("hashchange", follow);
  legend(chosen());

  (async () => {
    for (const subject of subjects) {
      take(subject, await load(subject.core));
      if (subject === subjects[0]) { onMap = 0; views(); }
      refresh();
      if (!current) follow();
      // Without an address the best predicted voxel opens, so that the page explains itself.
      if (!current && subject === subjects[0] && !/^#voxel=/.test(location.hash)) {
        const first = found.find((record) => record.texts.length) || found[0];
        if (first) { const hash = location.hash; select(first); history.replaceState(null, "", hash || location.pathname.split("/").pop() || "."); }
      }
    }
    if (meta.vectors) {
      vectors = await load(meta.vectors);
      search = null;
      if (current) panel(...last);
      if ($("search").value.trim()) refresh();
    }
    if (!current) {
      const missing = /^#voxel=(.*)$/.exec(location.hash);
      $("panel").replaceChildren(make("p", { className: "empty", text: missing ? `No voxel ${missing[1]} in this report.` : "No voxel fits: choose one on the map, or change the words and filters above." }));
    }
    document.documentElement.dataset.ready = "yes";
  })().catch((error) => { $("panel").replaceChildren(make("p", { className: "empty", text: `The data could not be read: ${error.message}.` })); });
})();
