// Which voxels like X: an index of words over captions, and vectors of voxels and words. A word of the query also finds
// its plural, the last one its continuations; "quoted words" must stand side by side, and ask for words alone. Rarer
// words and earlier captions count more. search_captions ranks alike in Python (neuroenc.captions).
class CaptionSearch {
  constructor(voxels, vectors = null) {
    this.voxels = voxels;
    this.vectors = vectors;
    if (vectors) {
      this.stop = new Set(vectors.stop.map(CaptionSearch.stem));
      this.at = new Map(vectors.texts.map((text, k) => [text, k]));
      this.longest = Math.max(...vectors.texts.map((text) => text.split(" ").length));
      [this.a, this.b] = [vectors.a, vectors.b].map((packed) => Int8Array.from(atob(packed), (c) => c.charCodeAt(0)));
    }
    this.words = new Map(); // stem -> Map(voxel number -> weight)
    voxels.forEach((voxel, n) => {
      voxel.texts.forEach((text, place) => {
        for (const word of new Set(CaptionSearch.tokens(text))) {
          let found = this.words.get(word);
          if (!found) this.words.set(word, (found = new Map()));
          found.set(n, (found.get(n) || 0) + 1 / (place + 1));
        }
      });
    });
    this.list = [...this.words.keys()].sort();
  }

  static stem(word) {
    if (word.length > 4 && word.endsWith("ies")) return word.slice(0, -3) + "y";
    if (word.length > 4 && /(?:s|x|z|ch|sh)es$/.test(word)) return word.slice(0, -2);
    if (word.length > 3 && word.endsWith("s") && !word.endsWith("ss")) return word.slice(0, -1);
    return word;
  }

  static tokens(text) {
    return (text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || []).map(CaptionSearch.stem);
  }

  // Stems (all continuations of the last word, where it is not known itself) and phrases of a query.
  parse(query) {
    const phrases = [];
    const rest = query.replace(/["“”]([^"“”]+)["“”]/g, (_, phrase) => {
      phrases.push(CaptionSearch.tokens(phrase).join(" "));
      return " ";
    });
    const words = CaptionSearch.tokens(rest);
    const terms = words.map((word, k) => {
      if (this.words.has(word) || k < words.length - 1 || word.length < 2) return [word];
      let low = 0, high = this.list.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.list[middle] < word) low = middle + 1; else high = middle;
      }
      const found = [];
      while (low < this.list.length && this.list[low].startsWith(word) && found.length < 50) found.push(this.list[low++]);
      return found.length ? found : [word];
    });
    for (const phrase of phrases) terms.push(...phrase.split(" ").filter(Boolean).map((word) => [word]));
    return { terms, phrases: phrases.filter(Boolean) };
  }

  // Map of voxel number -> score; empty where nothing fits.
  find({ terms, phrases }) {
    const total = new Map(), count = new Map();
    for (const options of terms) {
      const here = new Map();
      for (const word of options) {
        const found = this.words.get(word);
        if (!found) continue;
        const rare = Math.log(1 + this.voxels.length / found.size);
        for (const [n, weight] of found) here.set(n, Math.max(here.get(n) || 0, rare * weight / (weight + 0.5)));
      }
      for (const [n, score] of here) {
        total.set(n, (total.get(n) || 0) + score);
        count.set(n, (count.get(n) || 0) + 1);
      }
    }
    // A voxel that has every word comes before one that has some of them.
    for (const [n, score] of total) total.set(n, score * (count.get(n) / terms.length) ** 2);
    if (phrases.length) {
      for (const n of [...total.keys()]) {
        const texts = this.voxels[n].texts.map((text) => ` ${CaptionSearch.tokens(text).join(" ")} `);
        if (!phrases.every((phrase) => texts.some((text) => text.includes(` ${phrase} `)))) total.delete(n);
      }
    }
    return total;
  }

  // Texts of the vocabulary that a query names, from left to right, the longest first, and stems of no text.
  known(text) {
    const words = CaptionSearch.tokens(text), found = [], lost = new Set();
    for (let n = 0; n < words.length;) {
      let size = Math.min(this.longest, words.length - n);
      while (size && !this.at.has(words.slice(n, n + size).join(" "))) size--;
      if (size) found.push(this.at.get(words.slice(n, n + size).join(" ")));
      else if (!this.stop.has(words[n])) lost.add(words[n]);
      n += size || 1;
    }
    return [found, [...lost]];
  }

  // What a voxel makes of words: its percentile of them among all words, and among all voxels; null without a vector.
  // score_words says the same in Python (neuroenc.captions).
  say(text, voxel) {
    const row = this.vectors ? this.vectors.rows.indexOf(voxel) : -1;
    if (row < 0) return null;
    const { rows, s, components: n } = this.vectors, { a, b } = this;
    const [found, unknown] = this.known(text);
    if (!found.length) return { known: [], unknown };
    const mean = new Array(n).fill(0);
    for (const k of found) for (let c = 0; c < n; c++) mean[c] += a[k * n + c];
    const dot = (u, i, v, j) => { let sum = 0; for (let c = 0; c < n; c++) sum += u[i * n + c] * v[j * n + c]; return sum; };
    const size = (u, i) => Math.sqrt(dot(u, i, u, i));
    const own = dot(b, row, mean, 0) / (size(mean, 0) || 1);
    let below = 0, lower = 0;
    for (let k = 0; k < this.vectors.texts.length; k++) below += dot(b, row, a, k) / Math.max(size(a, k), 1) < own;
    const z = (k) => (dot(b, k, mean, 0) * s[k]) / found.length;
    const here = z(row);
    for (let k = 0; k < rows.length; k++) lower += z(k) < here;
    return { known: found.map((k) => this.vectors.texts[k]), unknown, z: here, cosine: own / Math.max(size(b, row), 1),
             words: below / this.vectors.texts.length, voxels: rows.length > 1 ? lower / (rows.length - 1) : null };
  }

  // Map of voxel number -> mean z of the query's words, of voxels above a level; empty where quotation marks stand.
  near(text) {
    const out = new Map();
    if (!this.vectors || /["“”]([^"“”]+)["“”]/.test(text)) return out;
    const [found] = this.known(text), { rows, s, least, components } = this.vectors;
    if (!found.length) return out;
    const mean = new Array(components).fill(0);
    for (const k of found) for (let c = 0; c < components; c++) mean[c] += this.a[k * components + c];
    rows.forEach((n, row) => {
      let sum = 0;
      for (let c = 0; c < components; c++) sum += this.b[row * components + c] * mean[c];
      const z = (sum * s[row]) / found.length;
      if (z > least) out.set(n, z);
    });
    return out;
  }

  // Voxel numbers by score (to 9 digits), then accuracy, then place.
  order(scores) {
    const rounded = new Map([...scores].map(([n, score]) => [n, Math.floor(score * 1e9 + 0.5) / 1e9]));
    const r = (n) => this.voxels[n].numbers?.r ?? -9;
    return [...rounded.keys()].sort((a, b) => rounded.get(b) - rounded.get(a) || r(b) - r(a) || a - b);
  }

  // Words and vectors joined by reciprocal ranks: Map, in its order, of voxel number -> { score, places: [words, vectors] }.
  rank(text) {
    const found = new Map();
    [this.find(this.parse(text)), this.near(text)].forEach((scores, index) => this.order(scores).forEach((n, place) => {
      if (!found.has(n)) found.set(n, { score: 0, places: [0, 0] });
      found.get(n).score += 1 / (60 + place + 1);
      found.get(n).places[index] = place + 1;
    }));
    const last = (place) => place || Infinity;
    const key = ([n, { score, places }]) => [-Math.round(score * 1e12), last(places[0]), last(places[1]), n];
    const keyed = [...found].map((entry) => [key(entry), entry]);
    keyed.sort(([a], [b]) => { const k = a.findIndex((x, i) => x !== b[i]); return k < 0 ? 0 : a[k] < b[k] ? -1 : 1; });
    return new Map(keyed.map(([, entry]) => entry));
  }
}
