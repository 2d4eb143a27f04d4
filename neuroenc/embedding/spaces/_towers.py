"""Towers of texts and images that are trained together."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from neuroenc._core.errors import DataError
from neuroenc.embedding._losses import info_nce, nested_loss, ranking_hinge
from neuroenc.embedding.spaces._static import find_words, word_counter

_BUCKETS = 2**15
#: Characters of a caption that are read.
MAX_CHARACTERS = 256


class TextTower(nn.Module):
    """Texts to unit vectors.

    Parameters
    ----------
    reads : {"bow", "ngrams", "gru", "characters"}
        A perceptron on the mean vector of words, or of hashed words and pairs of words; a recurrent network on words;
        a bidirectional one on characters with vectorial attention pooling.
    words : list of str
        Vocabulary of words or characters.
    """

    def __init__(self, reads: str, words: Sequence[str], dims: int) -> None:
        super().__init__()
        self.reads, self.words, self.dims = reads, list(words), dims
        self._place = {word: n + 2 for n, word in enumerate(words)}  # 0 pads, 1 is unknown
        self._split = word_counter(self.words).build_analyzer() if reads != "characters" else None
        rows = 2 + (_BUCKETS if reads == "ngrams" else len(self.words))
        width = 64 if reads == "characters" else dims
        self.table = nn.Embedding(rows, width, padding_idx=0)
        nn.init.normal_(self.table.weight, std=0.1)
        if reads in ("bow", "ngrams"):
            self.head = nn.Sequential(nn.Linear(dims, dims), nn.ReLU(), nn.Linear(dims, dims))
        elif reads == "gru":
            self.cell = nn.GRU(width, dims, batch_first=True)
        else:
            self.cell = nn.GRU(width, dims // 2, batch_first=True, bidirectional=True)
            self.attention = nn.Sequential(nn.Linear(dims, 128), nn.Tanh(), nn.Linear(128, dims))

    def rows(self, text: str) -> list[int]:
        """Numbers of what is read of a text, at least one."""
        if self.reads == "characters":
            found = [self._place.get(c, 1) for c in " ".join(text.lower().split())[:MAX_CHARACTERS]]
        else:
            split = self._split(text)  # type: ignore[misc]
            if self.reads == "ngrams":
                pairs = [f"{a} {b}" for a, b in zip(["<", *split], [*split, ">"])]
                found = [2 + zlib.crc32(part.encode()) % _BUCKETS for part in [*split, *pairs]]
            else:
                found = [self._place.get(word, 1) for word in split]
        return found or [1]

    def tokens(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """What `forward` takes."""
        return [torch.tensor(self.rows(text)) for text in texts]

    def forward(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """Unit vectors (n, dims)."""
        lengths = torch.tensor([len(x) for x in tokens])
        ids = nn.utils.rnn.pad_sequence(list(tokens), batch_first=True).to(self.table.weight.device)
        x, here = self.table(ids), (ids != 0)[..., None]
        if self.reads in ("bow", "ngrams"):
            mean = (x * here).sum(1) / here.sum(1)
            return nn.functional.normalize(mean + self.head(mean), dim=-1)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states, last = self.cell(packed)
        if self.reads == "gru":
            return nn.functional.normalize(last[-1], dim=-1)
        states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
        weight = self.attention(states).masked_fill(~here, -torch.inf).softmax(1)
        return nn.functional.normalize((weight * states).sum(1), dim=-1)

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        """Unit vectors of texts, those of like length together."""
        tokens = self.tokens(texts)
        order = sorted(range(len(tokens)), key=lambda n: len(tokens[n]))
        out = torch.empty((len(texts), self.dims))
        with torch.no_grad():
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                out[rows] = self([tokens[n] for n in rows]).cpu()
        return out


class LinearTower(nn.Module):
    """Linear map of a frozen model's vectors, scaled by their training statistics, to unit vectors."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.head = nn.Linear(width, dims)

    def see(self, vectors: np.ndarray) -> torch.Tensor:
        """Take the statistics of the training vectors (n, width), which are given back as a tensor."""
        seen = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
        self.mean.copy_(seen.mean(0))
        self.scale.copy_(seen.std(0).clamp(min=1e-6))
        return seen

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Unit vectors (n, dims)."""
        return nn.functional.normalize(self.head((vectors - self.mean) / self.scale), dim=-1)


class LayersTower(nn.Module):
    """Linear maps of a frozen text model's layers to unit vectors of one space, the deepest layer last."""

    def __init__(self, widths: Sequence[int], dims: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(LinearTower(width, dims) for width in widths)

    def forward(self, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Unit vectors (layer, n, dims) of vectors (n, width) of each layer."""
        return torch.stack([head(x) for head, x in zip(self.heads, vectors, strict=True)])


def make_text_tower(kind: str, texts: Sequence[str], settings: Mapping[str, Any]) -> TextTower:
    """An untrained tower with the vocabulary of these captions."""
    reads = "characters" if kind == "grounded" else settings["tower"]
    words: list[str] = []
    if reads == "characters":
        words = sorted({c for text in texts for c in text.lower()})
    elif reads != "ngrams":
        words = find_words(texts, settings["min_count"])
    return TextTower(reads, words, settings["dims"])


def fit_towers(
    kind: str,
    texts: Sequence[str],
    owner: np.ndarray,
    pictures: np.ndarray | None,
    settings: Mapping[str, Any],
    fit: Callable[..., None],
    miner: Callable[..., Any] | None,
    seed: int,
    frozen: Sequence[np.ndarray] = (),
) -> nn.ModuleDict:
    """Train a text tower, and an image tower where there are ``pictures``.

    Without pictures a stimulus is its other captions: two of each are drawn, and belong together.

    Parameters
    ----------
    texts : sequence of str (n,)
    owner : int array (n,)
        Stimulus of each caption.
    pictures : array (stimulus, feature), optional
        Vectors of a frozen backbone.
    fit : callable
        `train` with its settings.
    miner : callable, optional
        ``miner(queries, candidates, query_ids=, candidate_ids=).indices`` (query, k), -1 for none, or ``.batches(size,
        seed)``; asked before each epoch but the first.
    frozen : sequence of array (n, feature)
        Of "nested": vectors of the texts in each layer of a frozen model, the deepest last.
    """
    dims, nested = settings["dims"], kind == "nested"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text: Any = (
            LayersTower([x.shape[1] for x in frozen], dims) if nested else make_text_tower(kind, texts, settings)
        )
        model = nn.ModuleDict({"text": text})
        if pictures is not None:
            model["image"] = LinearTower(pictures.shape[1], dims)
    if nested:
        layers = [head.see(x) for head, x in zip(text.heads, frozen, strict=True)]
    else:
        tokens = text.tokens(texts)

    def read(rows: np.ndarray) -> torch.Tensor:
        """Vectors of texts: (n, dims), or (layer, n, dims)."""
        return text([x[rows] for x in layers]) if nested else text([tokens[n] for n in rows])

    of = np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1])
    number = np.arange(len(of))
    if pictures is None:
        several = np.array([len(rows) > 1 for rows in of])
        alone, number = int((~several).sum()), np.where(several, several.cumsum() - 1, -1)
        of = [rows for rows in of if len(rows) > 1]
        if len(of) < 2:
            raise DataError(
                f"{alone} of {alone + len(of)} stimuli have one caption only: without pictures, two captions of a "
                "stimulus are what belongs together. Next step: images=, or several captions of each stimulus."
            )
        seen = None
    else:
        image: Any = model["image"]
        seen = image.see(pictures)
    names = ("margin", "negatives") if settings["loss"] == "hinge" else ("temperature", "focal", "mix")
    options: dict[str, Any] = {name: settings[name] for name in names}
    if settings["loss"] != "hinge":
        options["symmetric"] = True
    score: Callable[..., Any] = partial(ranking_hinge if settings["loss"] == "hinge" else info_nce, **options)
    if nested:
        how = {name: settings[name] for name in ("prefixes", "align", "temperature")}
        score = partial(nested_loss, loss=score, **how)
    hard: list[np.ndarray | None] = [None]

    def mine(epoch: int) -> np.ndarray | None:
        if miner is None or not epoch:
            return None
        model.eval()
        if nested:
            with torch.no_grad():
                vectors = text.heads[-1](layers[-1]).numpy()
        else:
            vectors = text.encode(texts).numpy()
        asked, asked_ids = vectors, owner
        if seen is not None:
            with torch.no_grad():
                asked, asked_ids = model["image"](seen).numpy(), np.arange(len(seen))
        found = miner(asked, vectors, query_ids=asked_ids, candidate_ids=owner)
        model.train()
        if settings["batches"] == "hard":
            order = np.concatenate(found.batches(settings["batch_size"], seed=seed + epoch))
            return number[order[number[order] >= 0]]
        hard[0] = np.asarray(found.indices)
        return None

    def draw(rows: np.ndarray, width: int) -> list[np.ndarray]:
        """``width`` different captions of each stimulus."""
        chosen = [of[n][torch.randperm(len(of[n]))[:width].numpy()] for n in rows]
        return list(np.stack(chosen, 1))

    def loss(rows: np.ndarray) -> torch.Tensor:
        captions = draw(rows, 1 if seen is not None else 2)
        asked = rows if seen is not None else captions[0]
        mined = None if hard[0] is None else hard[0][asked]
        keep = np.zeros(len(rows), bool) if mined is None else (mined >= 0).all(1)
        further = [] if mined is None else [mined[keep].ravel()]
        vectors = read(np.concatenate([*captions, *further]))
        first = model["image"](seen[torch.from_numpy(rows)]) if seen is not None else vectors[..., : len(rows), :]
        begin = len(rows) * (len(captions) - 1)
        second = vectors[..., begin : begin + len(rows), :]
        extra = vectors[..., begin + len(rows) :, :]
        if mined is None or not keep.any():
            return score(first, second)
        # Queries for which the miner found fewer than k have no hard negatives of their own.
        parts = []
        own: Any = extra.unflatten(-2, (int(keep.sum()), mined.shape[1]))
        for chosen, hardest in ((keep, own), (~keep, None)):
            at = torch.from_numpy(np.flatnonzero(chosen))
            if len(at):
                parts.append(len(at) / len(rows) * score(first[..., at, :], second, at, hard=hardest))
        return torch.stack(parts).sum()

    fit(model, loss, len(of), before=mine)
    return model
