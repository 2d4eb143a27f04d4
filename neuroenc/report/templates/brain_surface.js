"use strict";
(function () {
  const data = JSON.parse(document.getElementById("payload").textContent);
  const byId = (id) => document.getElementById(id);
  const canvas = byId("cortex"), overlay = byId("overlay"), tip = byId("tip");
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const gl = canvas.getContext("webgl", { antialias: true, preserveDrawingBuffer: true });
  const state = { map: 0, flat: 0, aim: 0, view: byId("view").value, yaw: 0, pitch: 0, zoom: 1, shift: [0, 0] };

  // Voxels of each hemisphere: rows of the table.
  const voxels = data.voxels, sides = { L: [], R: [] };
  voxels.vertex.forEach((_, row) => sides[voxels.hemi[row]].push(row));

  const hemis = {};
  for (const side of ["L", "R"]) {
    const raw = data.hemis[side];
    hemis[side] = {
      raw, name: raw.name, texts: raw.texts, centre: raw.centre, span: raw.span,
      inflated: new Int16Array(bytes(raw.inflated).buffer), flat: new Int16Array(bytes(raw.flat).buffer),
      normals: new Int8Array(bytes(raw.normals).buffer), grey: bytes(raw.grey), on: bytes(raw.on),
      faces: new Uint16Array(bytes(raw.faces).buffer), flatFaces: new Uint16Array(bytes(raw.flat_faces).buffer),
      lines: new Int16Array(bytes(raw.lines).buffer), flatLines: new Int16Array(bytes(raw.flat_lines).buffer),
    };
  }

  if (!gl) {
    byId("sorry").hidden = false;
    byId("legend").src = data.maps[0].legend;
    document.documentElement.dataset.ready = "no-webgl";
    return;
  }

  function compile(vertex, fragment) {
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    return program;
  }
  const head = "precision highp float; attribute vec3 a, b; uniform mat3 turn; uniform vec4 place; uniform float flat_, unit;" +
    "vec4 put(vec3 n) { vec3 p = turn * (a * unit); vec3 q = b * unit - vec3(place.zw, 0.);" +
    " vec3 m = mix(p, q, flat_); return vec4(m.xy * place.xy, -m.z / 260., 1.); }";
  const cortex = compile(
    head + "attribute vec3 normal; attribute float grey; attribute vec4 colour; varying vec4 tone; varying vec3 bare;" +
    "void main() { gl_Position = put(normal); float facing = max((turn * normal).z / 127., 0.);" +
    " float light = mix(0.78 + 0.22 * facing, 1., flat_); bare = vec3(grey * light); tone = vec4(colour.rgb * colour.a, colour.a); }",
    "precision mediump float; varying vec4 tone; varying vec3 bare;" +
    "void main() { gl_FragColor = vec4(tone.rgb + bare * (1. - tone.a), 1.); }");
  const ink = compile(
    head + "void main() { gl_Position = put(a); }",
    "precision mediump float; void main() { gl_FragColor = vec4(0.11, 0.14, 0.16, 1.); }");

  function buffer(values, target) {
    const made = gl.createBuffer();
    gl.bindBuffer(target || gl.ARRAY_BUFFER, made);
    gl.bufferData(target || gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
    return made;
  }
  for (const h of Object.values(hemis)) {
    h.gl = { a: buffer(h.inflated), b: buffer(h.flat), normal: buffer(h.normals), grey: buffer(h.grey),
      faces: buffer(h.faces, gl.ELEMENT_ARRAY_BUFFER), flatFaces: buffer(h.flatFaces, gl.ELEMENT_ARRAY_BUFFER),
      lines: buffer(h.lines), flatLines: buffer(h.flatLines), colour: gl.createBuffer() };
  }
  function bind(program, name, buffer_, size, type, normalised) {
    const where = gl.getAttribLocation(program, name);
    if (where < 0) return;
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer_);
    gl.enableVertexAttribArray(where);
    gl.vertexAttribPointer(where, size, type, normalised, 0, 0);
  }

  function choose(number) {
    state.map = number;
    const map = data.maps[number], rgba = bytes(map.colours);
    for (const [side, h] of Object.entries(hemis)) {
      const all = new Uint8Array(h.grey.length * 4);
      for (const row of sides[side]) all.set(rgba.subarray(4 * row, 4 * row + 4), 4 * voxels.vertex[row]);
      gl.bindBuffer(gl.ARRAY_BUFFER, h.gl.colour);
      gl.bufferData(gl.ARRAY_BUFFER, all, gl.STATIC_DRAW);
    }
    byId("legend").src = map.legend;
    byId("legend").alt = "Legend: " + map.label;
    draw();
  }

  const cross = (u, v) => [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
  // Rows of the rotation: right, up, towards the reader; then yaw and pitch about the page's own axes.
  function rotation(side) {
    const [forward, up] = data.views[state.view][side];
    const rows = [cross(forward, up), up, forward.map((x) => -x)];
    const yaw = side === "L" ? state.yaw : -state.yaw;
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(state.pitch), Math.sin(state.pitch)];
    const mix = (w) => [0, 1, 2].map((k) => w[0] * rows[0][k] + w[1] * rows[1][k] + w[2] * rows[2][k]);
    return [mix([cy, 0, sy]), mix([sp * sy, cp, -sp * cy]), mix([-cp * sy, sp, cp * cy])];
  }
  // Everything that places a hemisphere in its half of the canvas.
  function placing(side) {
    const h = hemis[side], wide = canvas.clientWidth / 2, tall = canvas.clientHeight;
    const inflated = Math.min(wide / 228, tall / 180), flat = Math.min(wide, tall) / (Math.max(hemis.L.span, hemis.R.span) + 30);
    const scale = (inflated + (flat - inflated) * state.flat) * state.zoom;
    return { h, wide, tall, scale, rows: rotation(side), x: [2 * scale / wide, 2 * scale / tall],
      centre: [h.centre[0] - state.shift[0] * (side === "L" ? 1 : -1), h.centre[1] - state.shift[1]] };
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    gl.clearColor(1, 1, 1, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    const flat = state.flat > 0, outlines = byId("outlines") && byId("outlines").checked;
    overlay.replaceChildren();
    ["L", "R"].forEach((side, n) => {
      const p = placing(side), h = p.h;
      gl.viewport(n * canvas.width / 2, 0, canvas.width / 2, canvas.height);
      const uniforms = (program) => {
        gl.useProgram(program);
        const at = (name) => gl.getUniformLocation(program, name);
        gl.uniformMatrix3fv(at("turn"), false, [0, 1, 2].flatMap((k) => p.rows.map((row) => row[k])));
        gl.uniform4f(at("place"), p.x[0], p.x[1], p.centre[0], p.centre[1]);
        gl.uniform1f(at("flat_"), state.flat);
        gl.uniform1f(at("unit"), data.unit);
      };
      uniforms(cortex);
      bind(cortex, "a", h.gl.a, 3, gl.SHORT, false);
      bind(cortex, "b", h.gl.b, 3, gl.SHORT, false);
      bind(cortex, "normal", h.gl.normal, 3, gl.BYTE, false);
      bind(cortex, "grey", h.gl.grey, 1, gl.UNSIGNED_BYTE, true);
      bind(cortex, "colour", h.gl.colour, 4, gl.UNSIGNED_BYTE, true);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, flat ? h.gl.flatFaces : h.gl.faces);
      gl.enable(gl.POLYGON_OFFSET_FILL);
      gl.polygonOffset(1, 1);
      gl.drawElements(gl.TRIANGLES, (flat ? h.flatFaces : h.faces).length, gl.UNSIGNED_SHORT, 0);
      // A region that the flat patch cuts has other outlines there; on the way from one to the other there are none.
      const lines = state.flat ? h.flatLines : h.lines;
      if (outlines && lines.length && (state.flat === 0 || state.flat === 1)) {
        uniforms(ink);
        for (const where of ["a", "b"]) bind(ink, where, state.flat ? h.gl.flatLines : h.gl.lines, 3, gl.SHORT, false);
        if (flat) gl.disable(gl.DEPTH_TEST);
        // WebGL lines are one pixel wide: four passes, a fraction of a pixel apart, make them two.
        for (const [dx, dy] of [[0, 0], [1, 0], [0, 1], [1, 1]]) {
          gl.viewport(n * canvas.width / 2 + dx, dy, canvas.width / 2, canvas.height);
          gl.drawArrays(gl.LINES, 0, lines.length / 3);
        }
        gl.enable(gl.DEPTH_TEST);
      }
      name(h.name + " hemisphere", n * p.wide + p.wide / 2, 12, "side");
      if (byId("names") && byId("names").checked) {
        const taken = [];
        for (const text of h.texts) {
          const at = project(p, text.vertex);
          if (!at || taken.some((t) => Math.abs(t[0] - at[0]) < 26 && Math.abs(t[1] - at[1]) < 12)) continue;
          if (at[0] < 0 || at[0] > p.wide || at[1] < 0 || at[1] > p.tall) continue;
          taken.push(at);
          name(text.name, at[0] + n * p.wide, at[1], "");
        }
      }
    });
  }
  function name(text, x, y, kind) {
    const span = document.createElement("span");
    span.textContent = text;
    span.className = kind;
    span.style.left = x + "px";
    span.style.top = y + "px";
    overlay.append(span);
  }
  // Pixel of a vertex in its half of the canvas; null where it faces away or was cut off.
  function project(p, vertex) {
    const h = p.h, at = 3 * vertex, t = state.flat;
    if (t > 0.5 && !h.on[vertex]) return null;
    const dot = (row, from) => row[0] * from[at] + row[1] * from[at + 1] + row[2] * from[at + 2];
    if (t <= 0.5 && dot(p.rows[2], h.normals) < 20) return null;
    const q = [h.flat[at] * data.unit - p.centre[0], h.flat[at + 1] * data.unit - p.centre[1]];
    const m = [0, 1].map((k) => (1 - t) * dot(p.rows[k], h.inflated) * data.unit + t * q[k]);
    return [p.wide / 2 + m[0] * p.scale, p.tall / 2 - m[1] * p.scale];
  }

  function pick(x, y) {
    const n = x < canvas.clientWidth / 2 ? 0 : 1, side = "LR"[n], p = placing(side);
    let best = null, least = 12;
    for (const row of sides[side]) {
      const at = project(p, voxels.vertex[row]);
      const far = at ? Math.hypot(at[0] + n * p.wide - x, at[1] - y) : 99;
      if (far < least) { least = far; best = row; }
    }
    return best;
  }
  function describe(row) {
    const map = data.maps[state.map], lines = [map.label + ": " + map.texts[row]];
    if (map.others) lines.push(map.other + ": " + map.others[row]);
    if (voxels.roi[row]) lines.push(voxels.roi[row].split(";").join(", "));
    lines.push("voxel " + voxels.id[row] + " · " + voxels.hemi[row] + " vertex " + voxels.vertex[row]);
    return lines.join("\n");
  }
  function show(x, y) {
    const row = pick(x, y);
    tip.hidden = row === null;
    byId("said").textContent = row === null ? "" : describe(row).split("\n").join(" · ");
    if (row === null) return;
    tip.textContent = describe(row);
    tip.style.left = Math.min(x + 14, canvas.clientWidth - tip.offsetWidth - 4) + "px";
    tip.style.top = Math.min(y + 14, canvas.clientHeight - tip.offsetHeight - 4) + "px";
  }

  function move(dx, dy, side) {
    const scale = placing("L").scale;
    if (state.aim) {
      state.shift[0] += (side === "L" ? 1 : -1) * dx / scale;
      state.shift[1] -= dy / scale;
    } else {
      state.yaw += (side === "L" ? 1 : -1) * dx / 120;
      state.pitch = Math.max(-1.5, Math.min(1.5, state.pitch + dy / 120));
    }
    draw();
  }
  function reset() {
    Object.assign(state, { yaw: 0, pitch: 0, zoom: 1, shift: [0, 0] });
    draw();
  }
  function zoom(factor) {
    state.zoom = Math.max(0.5, Math.min(8, state.zoom * factor));
    draw();
  }
  function unfold(aim) {
    state.aim = aim;
    byId("view").disabled = aim === 1;
    const from = state.flat, start = performance.now();
    const quick = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    (function step(now) {
      const t = quick ? 1 : Math.max(0, Math.min(1, (now - start) / 500));
      state.flat = from + (aim - from) * t * t * (3 - 2 * t);
      draw();
      if (t < 1) requestAnimationFrame(step);
      else document.documentElement.dataset.mesh = aim ? "flat" : "inflated";
    })(start);
  }

  let held = null;
  const local = (e) => [e.clientX - canvas.getBoundingClientRect().left, e.clientY - canvas.getBoundingClientRect().top];
  canvas.addEventListener("pointerdown", (e) => { held = local(e); canvas.setPointerCapture(e.pointerId); tip.hidden = true; });
  canvas.addEventListener("pointerup", () => { held = null; });
  canvas.addEventListener("pointermove", (e) => {
    const now = local(e);
    if (!held) return show(now[0], now[1]);
    move(now[0] - held[0], now[1] - held[1], now[0] < canvas.clientWidth / 2 ? "L" : "R");
    held = now;
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("wheel", (e) => { e.preventDefault(); zoom(Math.exp(-e.deltaY / 600)); }, { passive: false });
  canvas.addEventListener("dblclick", reset);
  canvas.addEventListener("keydown", (e) => {
    const step = { ArrowLeft: [-12, 0], ArrowRight: [12, 0], ArrowUp: [0, -12], ArrowDown: [0, 12] }[e.key];
    if (step) { e.preventDefault(); move(step[0], step[1], "L"); }
    if (e.key === "+" || e.key === "=") zoom(1.2);
    if (e.key === "-") zoom(1 / 1.2);
  });
  byId("map").addEventListener("change", (e) => choose(Number(e.target.value)));
  byId("view").addEventListener("change", (e) => { state.view = e.target.value; state.yaw = state.pitch = 0; draw(); });
  for (const box of document.querySelectorAll("input[name=mesh]"))
    box.addEventListener("change", (e) => unfold(e.target.value === "flat" ? 1 : 0));
  for (const id of ["outlines", "names"]) if (byId(id)) byId(id).addEventListener("change", draw);
  byId("reset").addEventListener("click", reset);
  byId("controls").addEventListener("submit", (e) => e.preventDefault());
  // The legend arrives late and takes its room: labels and picking follow the size of the canvas.
  new ResizeObserver(draw).observe(byId("stage"));
  byId("map").value = "0";
  choose(0);
  document.documentElement.dataset.ready = "yes";
})();
