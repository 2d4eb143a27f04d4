"""Generative retrieval of COCO photographs: kinds of prompts by level, and few labelled pairs, beside BM25.

    python tests/benchmarks/bench_generative.py --mirror DATA [--photos 1000] [--asked 250] [--epochs 3] [--seed 0]

Photographs stand in the corpus by four captions each; the fifth caption of ``asked`` of them asks: as MiniLM's vector
for the retriever and for the nearest photograph (mean vector of its captions), as words for BM25. The retriever is a
language model of 2 layers that nobody trained before, pretrained on pseudo queries of the corpus. Categories are
concepts of the lexicon that captions name. Labelled pairs are fifth captions of photographs that are not asked for.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings

import numpy as np

LEVELS = ("image", "caption", "category")
TRAINING = {"batch_size": 64, "schedule": "cosine", "clip": 1.0, "noise": 0.02, "progress": False, "ngrams": 3}


class Task:
    """Corpus, queries, the vectors of both, and what answers."""

    def __init__(self, options: argparse.Namespace) -> None:
        from bench_spaces import fifth_captions

        from neuroenc.captions import named_concepts
        from neuroenc.embedding import TextEmbedder
        from neuroenc.retrieval import CaptionCorpus

        stimuli, asked, queries, kept = fifth_captions(options.mirror)
        # Photographs with a query come first: some are asked for, the others are labelled.
        rows, ids = asked[: options.photos], np.asarray(stimuli.ids).astype(str)
        flat = [(c, ids[n]) for n in rows for c in kept[n]]
        captions, owners = [c for c, _ in flat], [i for _, i in flat]
        self.corpus = CaptionCorpus(captions, owners, named_concepts(captions, owners))
        self.queries, self.images = queries[: options.asked], ids[rows[: options.asked]].tolist()
        self.labelled = queries[options.asked : len(rows)], ids[rows[options.asked :]].tolist()
        embedder, known = TextEmbedder("minilm", progress=False, device="cpu"), {}
        texts = list(dict.fromkeys([*self.corpus.captions, *queries[: len(rows)], *map(_plain, self.labelled[0])]))
        known.update(zip(texts, embedder.embed(texts).values))
        self.embed = lambda several: np.stack([known[t] for t in several])
        self.vectors = self.embed(self.queries)
        self.seed, self.epochs = options.seed, options.epochs

    def truth(self, level: str) -> list[set[str]]:
        """Ids that answer each query."""
        if level == "image":
            return [{i} for i in self.images]
        if level == "category":
            return [set(self.corpus.categories.get(i, ())) for i in self.images]
        return [{str(self.corpus.caption_ids[r]) for r in self.corpus.rows_of(i)} for i in self.images]

    def told(self, found: dict[str, list[list[str]]]) -> str:
        """Hits at 1 and 10 of images, at 10 of captions, and R-precision of categories, as cells."""
        cells = []
        for level, k in (("image", 1), ("image", 10), ("caption", 10)):
            if level in found:
                cells.append(np.mean([bool(set(f[:k]) & t) for f, t in zip(found[level], self.truth(level))]))
        if "category" in found:
            pairs = [(f, t) for f, t in zip(found["category"], self.truth("category")) if t]
            cells.append(np.mean([len(set(f[: len(t)]) & t) / len(t) for f, t in pairs]))
        return " | ".join(f"{x:.3f}" for x in cells)

    def answers(self, decoder, levels=LEVELS, **options) -> dict[str, list[list[str]]]:
        """What a decoder finds at each level."""
        from neuroenc.captions import NGramRetriever

        out = {}
        for level in levels:
            frame = NGramRetriever(self.corpus, decoder, level=level, **options).search(self.vectors)
            out[level] = [frame.loc[frame["query"] == q, "id"].tolist() for q in range(len(self.queries))]
        return out

    def fresh(self):
        """A decoder that learned nothing."""
        from neuroenc.captions import PrefixDecoder, make_language_model

        lm, tokenizer = make_language_model(self.corpus.captions, width=128, layers=2, vocabulary=2000, seed=self.seed)
        shape = {"prefix_length": 4, "normalise": True, "centre": True, "stop": "<end>", "batch_size": 50}
        return PrefixDecoder(lm, tokenizer, self.vectors.shape[1], **shape, seed=self.seed, device="cpu")

    def train(self, decoder, pairs, epochs, lr, warmup=0, **options):
        """The decoder, trained; vectors of one mean for texts and queries."""
        from neuroenc.captions import train_retriever

        how = {"epochs": epochs, "lr": lr, "warmup": warmup, "seed": self.seed, **TRAINING, **options}
        train_retriever(decoder, pairs, self.embed, **how)
        decoder.mean = decoder.text_direction
        return decoder


def _plain(text: str) -> str:
    from neuroenc.retrieval import plain_text

    return plain_text(text)


def beside(task: Task) -> None:
    """BM25 on the words, and the nearest photograph, caption or category of the same vectors."""
    from neuroenc.retrieval import LexicalIndex

    words, near = {}, {}
    for level in LEVELS:
        texts, ids = task.corpus.documents(level)
        index = LexicalIndex(texts, ids)
        k = min(10, len(index))
        words[level] = index.names(index.search(task.queries, k)[1]).tolist()
        names = list(dict.fromkeys(ids))
        unit = task.embed(texts)
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        place = {name: n for n, name in enumerate(names)}
        means = np.zeros((len(names), unit.shape[1]))
        np.add.at(means, [place[i] for i in ids], unit)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        order = np.argsort(-(task.vectors @ means.T), axis=1)[:, :k]
        near[level] = [[names[n] for n in row] for row in order]
    for name, found in (("BM25 on the words", words), ("nearest vector (MiniLM)", near)):
        print(f"| {name} | {task.told(found)} | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", required=True)
    parser.add_argument("--photos", type=int, default=1000, help="at most 1000")
    parser.add_argument("--asked", type=int, default=250)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")

    from neuroenc.retrieval import labelled_queries, pseudo_queries

    task = Task(options)
    pairs = pseudo_queries(task.corpus, levels=LEVELS, seed=options.seed)
    print(f"{task.corpus!r}, {len(task.queries)} queries, {len(pairs)} pseudo pairs\n")
    print("| retriever | image, hit@1 | hit@10 | caption, hit@10 | category, R-precision | seconds of one core |")
    print("|---|---|---|---|---|---|")
    beside(task)
    pretrained = None
    for kind in ("none", "discrete", "continuous", "hybrid"):
        begin = time.process_time()
        decoder = task.train(task.fresh(), pairs, options.epochs, 2e-3, 100, prompt=kind)
        cells = task.told(task.answers(decoder))
        print(f"| prompts: {kind} | {cells} | {time.process_time() - begin:.0f} |", flush=True)
        pretrained = decoder if kind == "none" else pretrained
    frozen = task.train(captioner(task), pairs, 1, 2e-2, 50, prompt="continuous", tune="prompts")
    print(f"| captioner, continuous prompts alone tuned | {task.told(task.answers(frozen))} | |", flush=True)
    print("\n| labelled pairs | after pretraining, image hit@1 | hit@10 | without, hit@1 | hit@10 |")
    print("|---|---|---|---|---|")
    for n in (0, 50, 500):
        cells = []
        for start, epochs, lr in ((pretrained, 5, 5e-4), (None, 20 if n < 500 else 10, 2e-3)):
            decoder = task.fresh() if start is None else copy.deepcopy(start)
            if n:
                few = labelled_queries(task.corpus, *(x[:n] for x in task.labelled), levels=["image"])
                decoder = task.train(decoder, few, epochs, lr, **({} if start is not None else {"prompt": "none"}))
            elif start is None:
                cells.append("| ")
                continue
            cells.append(task.told(task.answers(decoder, ["image"])))
        print(f"| {n} | {' | '.join(cells)} |", flush=True)


def captioner(task: Task):
    """A captioner of the same corpus: every caption from its own vector."""
    from neuroenc.captions import train_prefix

    decoder = task.fresh()
    how = {"epochs": 3, "batch_size": 64, "lr": 2e-3, "warmup": 100, "schedule": "cosine", "clip": 1.0, "noise": 0.02}
    train_prefix(decoder, task.embed(task.corpus.captions), task.corpus.captions, source="text", **how, progress=False)
    return decoder


if __name__ == "__main__":
    main()
