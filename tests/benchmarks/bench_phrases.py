"""Phrases of COCO captions from captions alone, beside spaCy's noun chunks and trees that know nothing.

    python tests/benchmarks/bench_phrases.py [--steps 2500] [--test 2000] [--minutes M] [--save FOLDER] [--load FOLDER]

Needs NEUROENC_MIRROR and the extra `language`. The parser learns from the captions of 4,600 photographs and is measured
on captions of the others. All trees are cut into phrases by the same rule and the same function words (those that the
parser takes from frequencies, or a list of English ones), so that what differs is the tree. "chunks" is the share of
spaCy's noun chunks (determiners included, two words or more) that are parts of the tree; a phrase, without determiners,
counts where both of its ends are spaCy's. Intervals (95 %) are over captions.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

from neuroenc import stats


def counted(trees, parsed, parser, chunks_gold, phrases_gold):
    """Numbers of each caption: chunks found, chunks, phrases found, phrases of the tree, phrases of spaCy."""
    from neuroenc.captions.text._trees import chunks, tree_spans

    rows = []
    function = set(parser.function_words_)
    for tree, b, gold, names in zip(trees, parsed, chunks_gold, phrases_gold, strict=True):
        w = b.words
        parts = {(w[a].start, w[z - 1].end) for a, z in tree_spans(tree)}
        cut = {(w[a].start, w[z - 1].end) for a, z in chunks(tree, w, b.text, function, parser.max_words)}
        rows.append((len(parts & gold), len(gold), len(cut & names), len(cut), len(names)))
    return np.array(rows, dtype=np.float64)


def shown(rows, bootstraps=500, seed=0):
    """Recall of chunks; F1, precision and recall of phrases, with their intervals."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(rows), (bootstraps, len(rows)))

    def scores(total):
        chunk, chunks, hit, cut, gold = np.moveaxis(total, -1, 0)
        return np.stack([chunk / chunks, 2 * hit / (cut + gold), hit / cut, hit / gold], axis=-1)

    found = scores(rows.sum(axis=0))
    low, high, _ = stats.sample_interval(scores(rows[draws].sum(axis=1)), found, n_units=len(rows), bounds=(0.0, 1.0))
    return [f"{v:.3f} [{a:.3f} {b:.3f}]" for v, a, b in zip(found, low, high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, default=None)
    parser.add_argument("--load", type=Path, default=None)
    found = parser.parse_args()

    import torch

    from brackets import left_branching, random_tree, right_branching
    from neuroenc.captions import SyntacticDistanceParser
    from neuroenc.captions.text._phrases import _BORDERS, load_spacy, phrases_of
    from neuroenc.data import load_dataset

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    images = load_dataset("coco-captions-val2017").stimuli.captions
    learned = [c for several in images[:4600] for c in several]
    tested = [c for several in images[4600:] for c in several][: found.test]
    began = time.process_time()
    if found.load is not None:
        syntax = SyntacticDistanceParser.load(found.load, device="cpu")
    else:
        syntax = SyntacticDistanceParser(device="cpu", seed=found.seed)
        syntax.fit(learned, steps=found.steps, minutes=found.minutes)
    seconds = time.process_time() - began
    print(f"{len(learned)} captions, {syntax.training_['steps']} steps, {seconds:.0f} s of processor")
    if found.save is not None:
        syntax.save(found.save)
    print(f"perplexity of hidden words: {syntax.perplexity(tested):.1f}; function words: {syntax.function_words_}")

    parsed = syntax.parse(tested)
    many = [len(b.words) > 1 for b in parsed]
    tested, parsed = ([x for x, m in zip(xs, many) if m] for xs in (tested, parsed))
    docs = list(load_spacy().pipe(tested, batch_size=256))
    chunks_gold = [{(c.start_char, c.end_char) for c in d.noun_chunks if len(c) > 1} for d in docs]
    spacy_phrases = phrases_of(tested, "spacy", ())
    phrases_gold = [{(p.start, p.end) for p in several} for several in spacy_phrases]
    rng = np.random.default_rng(0)
    counts = [len(b.words) for b in parsed]
    trees = {
        "learned": [b.tree for b in parsed],
        "right-branching": [right_branching(n) for n in counts],
        "left-branching": [left_branching(n) for n in counts],
        "random": [random_tree(n, rng) for n in counts],
    }
    print(f"\n{len(tested)} captions, {sum(map(len, chunks_gold))} chunks, {sum(map(len, phrases_gold))} phrases\n")
    print("| function words | tree | chunks | phrases, F1 | precision | recall |\n|---|---|---|---|---|---|")
    for words, listed in {"learned": syntax.function_words_, "given": sorted(_BORDERS)}.items():
        syntax.function_words_ = listed
        for name, several in trees.items():
            row = shown(counted(several, parsed, syntax, chunks_gold, phrases_gold))
            print(f"| {words} | {name} | {' | '.join(row)} |")
    # The package's own rules for English, which the list of function words is from.
    ruled = [{(p.start, p.end) for p in several} for several in phrases_of(tested, "rules", ())]
    both = sum(len(a & b) for a, b in zip(ruled, phrases_gold))
    sizes = sum(map(len, ruled)), sum(map(len, phrases_gold))
    scores = 2 * both / sum(sizes), both / sizes[0], both / sizes[1]
    print(f"| given | (rules of the package) | | {' | '.join(f'{x:.3f}' for x in scores)} |")

    heads = {(k, p.start, p.end): p.head for k, several in enumerate(spacy_phrases) for p in several if p.n_words > 1}
    roots = {}
    for k, doc in enumerate(docs):
        for chunk in doc.noun_chunks:
            roots[k, chunk.end_char] = chunk.root.text.casefold()
    for head in ("height", "first", "last"):
        syntax.head = head
        same = [
            p.head == roots[k, p.end]
            for k, several in enumerate(syntax.phrases(tested))
            for p in several
            if (k, p.start, p.end) in heads
        ]
        print(f"main word by {head}: spaCy's in {np.mean(same):.3f} of {len(same)} common phrases of two words or more")
    for b in parsed[:6]:
        print(b)


if __name__ == "__main__":
    main()
