"""Distillation of a slow ranker of token sets into vectors and a small head."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional as F

from neuroenc._core.arrays import as_numbers
from neuroenc._core.checks import at_least, check_whole, one_of
from neuroenc._core.device import exact_arithmetic, resolve_device
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.training import train
from neuroenc._core.weights import Kind, read_folder, reading, write_folder
from neuroenc.attention import ResidualMLP
from neuroenc.embedding import distill_kl
from neuroenc.retrieval._rank import PairRanker, check_pairs, label_scores, tensors_of
from neuroenc.retrieval._tokens import TokenSets, token_sets

_KIND = Kind("distilled ranker", "distilled.json", "distilled.safetensors", ("params", "widths", "moments", "sha256"))
_HEADS, _SIDES, _LOSSES = ("dot", "pair"), ("query", "candidate"), ("kl", "mse")


class DistilledRanker(PairRanker):
    r"""Bi-encoder that learned a slow ranker's scores, with a dot product and a head of pairs (distilled sentence
    embeddings).

    .. math:: u = W \Bigl[\textstyle\sum_i h(q_i),\; \max_i h(q_i)\Bigr], \qquad s_{dot} = u \cdot v, \qquad
              s_{pair} = u \cdot v + f([u;\; v;\; u \odot v;\; |u - v|])

    with v of the candidate's tokens by layers of its own, and f a small network that begins as 0. Vectors are made
    once: those of candidates go into a :class:`DenseIndex` with ``normalise=False``, whose search by those of queries
    ranks by the dot product; the head of pairs orders what it found. Both are trained on the teacher's scores t,

    .. math:: \mathcal{L} = \sum_{s \in \{s_{dot}, s_{pair}\}} \mathrm{mean}\,(s - t)^2 \quad\text{or}\quad
              \sum_s \mathrm{KL}(\mathrm{softmax}(t / \tau) \,\|\, \mathrm{softmax}(s / \tau)),

    t standardised over all pairs. :func:`distill_ranker` asks the teacher and fits.

    Parameters
    ----------
    dims : int
        Of vectors.
    hidden : int
        Inside the layers.
    loss : {"kl", "mse"}
        "kl" learns the order within a query: its scores compare candidates, not queries. "mse" learns the scores.
    temperature : float
        :math:`\tau`.
    list_size : int
        Candidates drawn for each step, the same for all of its queries.
    epochs, batch_size : int
        Passes over queries, and queries a step.
    learning_rate : float
    device : str
    seed : int

    Attributes
    ----------
    model_ : torch.nn.Module
    widths_ : tuple of int
        Features of a query's and of a candidate's token.
    mean_, scale_ : float
        Of the teacher's scores.

    References
    ----------
    Barkan et al. (2020), Scalable attentive sentence-pair modeling via distilled sentence embedding, AAAI.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.retrieval import CrossRanker, DenseIndex
    >>> rng = np.random.default_rng(0)
    >>> concepts = rng.standard_normal((12, 16))
    >>> words, patches = concepts[rng.integers(0, 12, (60, 3))], concepts[rng.integers(0, 12, (80, 6))]
    >>> student = distill_ranker(CrossRanker("maxsim"), words, patches, epochs=5)
    >>> index = DenseIndex(student.vectors(patches), normalise=False)
    >>> rows = index.search(student.vectors(words, side="query"), k=10)[1]
    >>> student.rerank(words, patches, index.names(rows), k=3).ids.shape
    (60, 3)
    """

    def __init__(
        self,
        dims: int = 64,
        *,
        hidden: int = 128,
        loss: str = "kl",
        temperature: float = 1.0,
        list_size: int = 64,
        epochs: int = 60,
        batch_size: int = 16,
        learning_rate: float = 0.003,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.dims, self.hidden, self.loss, self.temperature = dims, hidden, loss, temperature
        self.list_size, self.epochs, self.batch_size = list_size, epochs, batch_size
        self.learning_rate, self.device, self.seed = learning_rate, device, seed

    def fit(self, queries: Any, candidates: Any, scores: Any, *, progress: bool = False) -> Self:
        """Learn a teacher's scores.

        Parameters
        ----------
        queries, candidates : sets of tokens
            As of :class:`CrossRanker`.
        scores : array or DataArray (query, candidate)
            Of the teacher; NaN for pairs that it was not asked for.
        progress : bool

        Raises
        ------
        DataError
            Scores of another shape or order, infinite, or all the same.
        """
        asked, given = token_sets(queries, "queries"), token_sets(candidates, "candidates")
        one_of("loss", self.loss, _LOSSES)
        for name in ("list_size", "epochs", "batch_size"):
            check_whole(name, getattr(self, name))
        at_least("learning_rate", self.learning_rate, above=True)
        at_least("temperature", self.temperature, above=True)
        target = _scores(scores, asked, given)
        mean, scale = float(np.nanmean(target)), float(np.nanstd(target))
        if not scale > 0:
            raise DataError(f"the teacher gives every pair the score {mean}; nothing can be learned.")
        teacher = torch.from_numpy((target - mean) / scale)
        device, size = resolve_device(self.device), min(self.list_size, len(given.ids))
        net = self._build(asked.width, given.width).to(device)
        rows = np.flatnonzero((~np.isnan(target)).any(1))

        def loss(batch: np.ndarray) -> Tensor:
            at, some = rows[batch], torch.randperm(len(given.ids))[:size].numpy()
            wanted = teacher[at][:, some].to(device)
            u, v = net(tensors_of(asked, at, device), 0), net(tensors_of(given, some, device), 1)
            there = ~wanted.isnan()
            parts = []
            for found in (net.dot(u[:, None], v[None]), net.pair(u[:, None], v[None])):
                if self.loss == "mse":
                    parts.append((found - wanted)[there].square().sum() / there.sum().clamp(min=1))
                else:
                    both = (x.masked_fill(~there, -1e9) for x in (found, wanted))
                    parts.append(distill_kl(*both, temperature=self.temperature))
            return parts[0] + parts[1]

        how: dict[str, Any] = {"learning_rate": self.learning_rate, "seed": self.seed, "desc": "distilling"}
        train(net, loss, len(rows), epochs=self.epochs, batch_size=self.batch_size, show=progress, **how)
        self.model_, self.widths_ = net.requires_grad_(False), (asked.width, given.width)
        self.mean_, self.scale_ = mean, scale
        return self

    def vectors(self, sets: Any, side: str = "candidate", *, batch_size: int = 512) -> np.ndarray | xr.DataArray:
        """Vectors of queries or candidates; the dot product of one of each ranks as the teacher does.

        Parameters
        ----------
        sets : sets of tokens
        side : {"candidate", "query"}
        batch_size : int
            Sets at a time.

        Returns
        -------
        ndarray (set, dims) float32, or DataArray with the ids of labelled sets
        """
        number = _SIDES.index(one_of("side", side, _SIDES))
        found = token_sets(sets, f"{side} tokens")
        net, step = self._net(), check_whole("batch_size", batch_size)
        if found.width != self.widths_[number]:
            raise DataError(
                f"tokens of {found.width} features; the ranker was fitted on {self.widths_[number]} of a {side}. "
                "Next step: the same layers as in training."
            )
        device = resolve_device(self.device)
        out, n = np.empty((len(found.ids), self.dims), np.float32), len(found.ids)
        with exact_arithmetic():
            for a in range(0, n, step):
                some = slice(a, min(a + step, n))
                out[some] = net.to(device)(tensors_of(found, some, device), number).cpu().numpy()
        return xr.DataArray(out, dims=(found.dim, "feature"), coords={found.dim: found.ids}) if found.dim else out

    def score(
        self, queries: Any, candidates: Any, *, pairs: Any = None, batch_size: int = 4096, head: str = "pair"
    ) -> np.ndarray | xr.DataArray:
        """Scores of all pairs of queries and candidates, or of given ones, in the teacher's units (with "mse").

        Parameters
        ----------
        queries, candidates : sets of tokens
        pairs : int array (n, 2), optional
            Rows of a query and of a candidate.
        batch_size : int
            Pairs at a time.
        head : {"pair", "dot"}

        Returns
        -------
        ndarray or DataArray
            As of :meth:`CrossRanker.score`.
        """
        one_of("head", head, _HEADS)
        asked, given = token_sets(queries, "queries"), token_sets(candidates, "candidates")
        step, device = check_whole("batch_size", batch_size), resolve_device(self.device)
        net = self._net().to(device)
        sides = [torch.from_numpy(np.asarray(self.vectors(s, n))).to(device) for s, n in zip((asked, given), _SIDES)]
        if pairs is not None:
            at = torch.from_numpy(check_pairs(pairs, len(asked.ids), len(given.ids))).to(device)
            with exact_arithmetic():
                parts = [getattr(net, head)(sides[0][some[:, 0]], sides[1][some[:, 1]]) for some in at.split(step)]
            return self._in_units(torch.cat(parts))
        rows = max(1, step // len(given.ids)) if head == "pair" else len(asked.ids)
        with exact_arithmetic():
            blocks = [net.every(u, sides[1], head, step) for u in sides[0].split(rows)]
        return label_scores(self._in_units(torch.cat(blocks)), asked, given)

    def _one_query(self, asked: TokenSets, given: TokenSets) -> Callable[[int, np.ndarray], np.ndarray]:
        net, device = self._net(), resolve_device(self.device)
        u, v = (torch.from_numpy(np.asarray(self.vectors(s, n))) for s, n in zip((asked, given), _SIDES))

        def scores(query: int, rows: np.ndarray) -> np.ndarray:
            with exact_arithmetic():
                found = net.to(device).pair(u[query][None].to(device), v[torch.from_numpy(rows)].to(device))
            return self._in_units(found)

        return scores

    def _in_units(self, found: Tensor) -> np.ndarray:
        return np.asarray(found.cpu().numpy() * self.scale_ + self.mean_, np.float32)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fitted ranker to a folder."""
        net, moments = self._net(), [self.mean_, self.scale_]
        record = {"params": self.get_params(), "widths": list(self.widths_), "moments": moments}
        return write_folder(path, _KIND, record, net.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a ranker that `save` wrote."""
        record, tensors = read_folder(path, _KIND)
        with reading(path, _KIND.name):
            made = cls(**record["params"])
            made.widths_ = tuple(record["widths"])
            made.mean_, made.scale_ = record["moments"]
            made.model_ = made._build(*made.widths_).requires_grad_(False).eval()
            made.model_.load_state_dict(tensors)
        return made

    def _build(self, query: int, candidate: int) -> Any:
        sizes = [check_whole(name, getattr(self, name)) for name in ("dims", "hidden")]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(check_whole("seed", self.seed, least=0))
            return _Student(query, candidate, *sizes)

    def _net(self) -> Any:
        if getattr(self, "model_", None) is None:
            raise ConfigError(
                "this DistilledRanker was not fitted. Next step: distill_ranker(teacher, queries, candidates)."
            )
        return self.model_


def distill_ranker(teacher: Any, queries: Any, candidates: Any, **settings: Any) -> DistilledRanker:
    """Distil a slow ranker into vectors for a `DenseIndex` and a head of pairs.

    Parameters
    ----------
    teacher : CrossRanker, or anything with ``score(queries, candidates)``
        It is asked for every pair of what follows.
    queries, candidates : sets of tokens
        To learn from; those of another search may be others.
    **settings
        Of :class:`DistilledRanker`.

    References
    ----------
    Barkan et al. (2020), Scalable attentive sentence-pair modeling via distilled sentence embedding, AAAI.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.retrieval import CrossRanker
    >>> words, patches = np.random.default_rng(0).standard_normal((2, 20, 3, 8))
    >>> student = distill_ranker(CrossRanker("maxsim"), words, patches, dims=16, epochs=2)
    >>> student.vectors(patches).shape
    (20, 16)
    """
    student = DistilledRanker(**settings)
    asked, given = token_sets(queries, "queries"), token_sets(candidates, "candidates")
    return student.fit(asked, given, teacher.score(asked, given))


class _Student(nn.Module):
    """Two towers of tokens and a head of pairs of their vectors."""

    def __init__(self, query: int, candidate: int, dims: int, hidden: int) -> None:
        super().__init__()
        widths = (query, candidate)
        self.tokens = nn.ModuleList([ResidualMLP(w, hidden, hidden) for w in widths])
        self.pooled = nn.ModuleList([nn.Linear(2 * hidden, dims) for _ in widths])
        self.head = ResidualMLP(4 * dims, 1, hidden)
        for layer in (self.head.linear2, self.head.bypass):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.offset, self.scale = nn.Parameter(torch.zeros(())), dims**-0.25  # a first dot product of order 1

    def forward(self, sets: tuple[Tensor, Tensor], side: int) -> Tensor:
        tokens, mask = F.normalize(sets[0], dim=-1), sets[1][..., None]
        h = F.leaky_relu(self.tokens[side](tokens), 0.1)
        # A sum knows how many there are, as a sum over words does; an eighth of it is of the order of a maximum.
        total, most = (h * mask).sum(1) / 8, h.masked_fill(~mask, -torch.inf).amax(1)
        return self.scale * self.pooled[side](torch.cat([total, most], -1))

    def dot(self, u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(-1) + self.offset

    def every(self, u: Tensor, v: Tensor, head: str, step: int) -> Tensor:
        """Scores of all pairs (query, candidate) of vectors, of so many candidates at a time."""
        if head == "dot":
            return u @ v.T + self.offset
        return torch.cat([self.pair(u[:, None], some[None]) for some in v.split(step)], 1)

    def pair(self, u: Tensor, v: Tensor) -> Tensor:
        u, v = torch.broadcast_tensors(u, v)
        return self.dot(u, v) + self.head(torch.cat([u, v, u * v, (u - v).abs()], -1))[..., 0]


def _scores(scores: Any, asked: TokenSets, given: TokenSets) -> np.ndarray:
    """The teacher's scores (query, candidate) float32, refused where their labels stand in another order."""
    if isinstance(scores, xr.DataArray):
        for dim, sets in zip(scores.dims, (asked, given)):
            if dim in scores.coords and [str(x) for x in scores[dim].values] != sets.ids.tolist():
                raise DataError(f"scores name other {dim} ids than the tokens, or in another order. Next step: .sel.")
    found = np.asarray(as_numbers(scores, "scores"), np.float32)
    expected = (len(asked.ids), len(given.ids))
    if found.shape != expected or np.isinf(found).any() or np.isnan(found).all():
        raise DataError(
            f"scores have shape {found.shape}, {int(np.isinf(found).sum())} infinite and {int(np.isnan(found).sum())} "
            f"NaN; expected (query, candidate) = {expected}, finite or NaN, not all NaN."
        )
    return found
