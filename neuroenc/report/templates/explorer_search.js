// Which voxels like X: an index of words over captions. A word of the query also finds its plural, the last one its
// continuations; "quoted words" must stand side by side. Rarer words and earlier captions count more.
class CaptionSearch {
  constructor(voxels) {
    this.voxels = voxels;
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
}
