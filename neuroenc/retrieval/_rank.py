"""Rankers of pairs of token sets: maximum similarity, kernel pooling, cross-attention."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
import xarray as xr
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.nn import functional as F

from neuroenc._core.arrays import as_numbers
from neuroenc._core.checks import at_least, check_whole, one_of
from neuroenc._core.device import exact_arithmetic, resolve_device
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.training import train
from neuroenc._core.weights import Kind, read_folder, reading, write_folder
from neuroenc.attention import Attention, Block, Stack
from neuroenc.embedding import ranking_loss
from neuroenc.retrieval._search import Reranked, second_stage
from neuroenc.retrieval._tokens import TokenSets, token_sets

_KIND = Kind("ranker", "ranker.json", "ranker.safetensors", ("params", "widths", "sha256"))
_BATCH = 1024  # pairs scored at a time


class PairRanker(BaseEstimator, ABC):
    """What all rankers of token sets share: the second stage of a search, in three forms."""

    @abstractmethod
    def score(
        self, queries: Any, candidates: Any, *, pairs: Any = None, batch_size: int = _BATCH
    ) -> np.ndarray | xr.DataArray:
        """Scores of queries and candidates; see the class."""

    def scorer(self, queries: Any, candidates: Any) -> Callable[[int, Any], np.ndarray]:
        """This ranker as a second stage: a callable of a query's number and ids of candidates, which gives scores.

        For ``rerank`` of :func:`hybrid_search` and :func:`neuroenc.captions.search_voxels`.

        Parameters
        ----------
        queries, candidates : sets of tokens
            Query n of the search is the n-th set; a candidate is found by its id.
        """
        asked, given = token_sets(queries, "queries"), token_sets(candidates, "candidates")
        place, one = pd.Index(given.ids), self._one_query(asked, given)

        def scores(query: int, ids: Any) -> np.ndarray:
            names = np.array([str(x) for x in np.asarray(ids).tolist()], dtype=str)
            rows = place.get_indexer(names)
            if (rows < 0).any():
                step = f"Next step: tokens of all that is searched; these are of {len(place)} candidates."
                raise DataError(unknown_name("candidate", names[rows < 0][0], given.ids[:2000].tolist(), step))
            if not 0 <= query < len(asked.ids):
                raise DataError(f"query {query} of {len(asked.ids)} sets of query tokens; each query needs its own.")
            return one(query, rows)

        return scores

    def _one_query(self, asked: TokenSets, given: TokenSets) -> Callable[[int, np.ndarray], np.ndarray]:
        """Scores of one query and rows of candidates."""
        return lambda query, rows: np.asarray(self.score(asked.take([query]), given.take(rows)))[0]

    def rerank(self, queries: Any, candidates: Any, ids: Any, k: int | None = None) -> Reranked:
        """Order what a first stage found by this ranker.

        Parameters
        ----------
        queries, candidates : sets of tokens
        ids : array (query, depth) of str
            Candidates of each query, the best first, as ``names`` of an index gives them; "" for none.
        k : int, optional
            How many are kept; default all.

        Returns
        -------
        Reranked
            ``scores, ids, before`` (query, k).
        """
        return second_stage(ids, self.scorer(queries, candidates), k)


class CrossRanker(PairRanker):
    r"""Rank candidates by the interaction of their tokens with those of a query: the words of a caption, say, with
    the patches of an image.

    .. math:: s_{maxsim} = \sum_i \max_j \cos(A q_i, B c_j), \qquad
              s_{kernel} = b + \sum_k w_k \sum_i \log \sum_j e^{-(\cos(A q_i, B c_j) - \mu_k)^2 / 2 \sigma^2}

    over query tokens i and candidate tokens j. "cross_attention" runs transformer blocks over the tokens of both and
    reads a register token. One vector a side (:class:`DenseIndex`) sees what the tokens have in common on the whole;
    these see that one patch matches one word. They cost a forward pass for each pair, and are the second stage of a
    search: ``hybrid_search(..., rerank=ranker.scorer(queries, candidates))``.

    Parameters
    ----------
    kind : {"maxsim", "kernel", "cross_attention"}
        "maxsim" needs no training, where tokens of both sides lie in one space: until it is fitted it scores them as
        they are.
    loss : {"listwise", "pairwise", "pointwise", "lambda_mrr"}
        See :func:`neuroenc.embedding.ranking_loss`.
    dims : int, optional
        Width of the learned linear maps A and B. By default there are none (both sides need one width), and
        "cross_attention" has blocks of width 64.
    kernels : int
        Of "kernel": means :math:`\mu_k` evenly from 1 down to -1; :math:`\sigma` is half their distance.
    depth, heads : int
        Of "cross_attention".
    list_size : int
        Candidates of each query in a step of training: up to half of them relevant ones, the others drawn from the
        rest.
    epochs, batch_size : int
        Passes over queries, and queries a step.
    learning_rate : float, optional
        Default .01, and .001 of "cross_attention".
    device : str
    seed : int
        Of first weights and draws.

    Attributes
    ----------
    model_ : torch.nn.Module
    widths_ : tuple of int
        Features of a query's and of a candidate's token.

    Notes
    -----
    Sets of tokens are a DataArray (id, token, feature), maps (id, channel, y, x), an array of such shape, or a list of
    arrays (token, feature) of different lengths; NaN tokens are padding. The coordinate of the first dimension names
    the sets. Scores do not depend on the batch size but for rounding.

    References
    ----------
    Guo et al. (2020), A deep look into neural ranking models, Information Processing & Management 57. Xiong et al.
    (2017), End-to-end neural ad-hoc ranking with kernel pooling (KNRM), SIGIR. Khattab & Zaharia (2020), ColBERT:
    efficient and effective passage search via contextualized late interaction over BERT, SIGIR.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> words = rng.standard_normal((3, 2, 16))  # two words in each of three captions
    >>> patches = rng.standard_normal((5, 9, 16))
    >>> patches[4, 7] = words[1, 0]  # one patch shows one word of the second caption
    >>> ranker = CrossRanker("maxsim")
    >>> ranker.score(words, patches).argmax(axis=1)[1].item()
    4
    >>> ranker.rerank(words, patches, [["0", "1"], ["2", "4"], ["3", "0"]]).before[1].tolist()
    [2, 1]
    >>> ranker.matches(words, patches, [[1, 4]])[0, 0].argmax().item()  # why: the first word, the eighth patch
    7
    """

    def __init__(
        self,
        kind: str = "maxsim",
        *,
        loss: str = "listwise",
        dims: int | None = None,
        kernels: int = 11,
        depth: int = 2,
        heads: int = 4,
        list_size: int = 16,
        epochs: int = 20,
        batch_size: int = 8,
        learning_rate: float | None = None,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.kind, self.loss, self.dims, self.kernels = kind, loss, dims, kernels
        self.depth, self.heads, self.list_size = depth, heads, list_size
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.device, self.seed = device, seed

    def fit(self, queries: Any, candidates: Any, relevance: Any = None, *, progress: bool = False) -> Self:
        """Learn from graded relevance.

        Parameters
        ----------
        queries, candidates : sets of tokens
        relevance : array (query, candidate), DataArray or DataFrame, optional
            Grades of at least 0; NaN where nobody judged. Labels of a DataArray or DataFrame are matched with the ids
            of the sets. Default: 1 for the candidate of the query's id (without ids, row n for row n), else 0.
        progress : bool
            Show a progress bar.

        Raises
        ------
        DataError
            Tokens of no common width without ``dims``, relevance of another shape, negative, or that says nothing.
        """
        asked, given = token_sets(queries, "queries"), token_sets(candidates, "candidates")
        for name in ("list_size", "epochs", "batch_size"):
            check_whole(name, getattr(self, name), least=2 if name == "list_size" else 1)
        rate = 0.001 if self.kind == "cross_attention" else 0.01
        rate = rate if self.learning_rate is None else at_least("learning_rate", self.learning_rate, above=True)
        ranking_loss(torch.zeros(1, 1), torch.zeros(1, 1), self.loss)  # refuses an unknown loss before it computes
        grades = _grades(relevance, asked, given)
        device = resolve_device(self.device)
        net = self._build(asked.width, given.width).to(device)
        rows = np.flatnonzero((~np.isnan(grades)).any(1))
        judged = torch.from_numpy(grades)
        size = min(self.list_size, len(given.ids))

        def loss(batch: np.ndarray) -> Tensor:
            at = rows[batch]
            grade = judged[at]
            column = _draw(grade, size)
            there = ~grade.gather(1, column).isnan()
            q, c = (
                net.encode(tensors_of(asked, at, device), 0),
                net.encode(tensors_of(given, column.ravel(), device), 1),
            )
            q = tuple(x.repeat_interleave(size, 0) for x in q)
            scores = net.pairs(*q, *c).view(len(at), size)
            return ranking_loss(scores, grade.gather(1, column).to(device), self.loss, mask=there.to(device))

        how: dict[str, Any] = {"learning_rate": rate, "seed": self.seed, "desc": f"ranker {self.kind}"}
        train(net, loss, len(rows), epochs=self.epochs, batch_size=self.batch_size, show=progress, **how)
        self.model_, self.widths_ = net.requires_grad_(False), (asked.width, given.width)
        return self

    def score(
        self, queries: Any, candidates: Any, *, pairs: Any = None, batch_size: int = _BATCH
    ) -> np.ndarray | xr.DataArray:
        """Scores of all pairs of queries and candidates, or of given ones.

        Parameters
        ----------
        queries, candidates : sets of tokens
        pairs : int array (n, 2), optional
            Rows of a query and of a candidate.
        batch_size : int
            Pairs at a time.

        Returns
        -------
        ndarray (query, candidate) float32, or (n,) of ``pairs``
            A DataArray with the ids as coordinates where queries or candidates are labelled.

        Raises
        ------
        DataError
            Tokens of other widths than in training, or pairs outside the sets.
        """
        asked, given = token_sets(queries, "queries"), token_sets(candidates, "candidates")
        size, device = check_whole("batch_size", batch_size), resolve_device(self.device)
        net = self._net(asked.width, given.width).to(device)
        nq, nc = len(asked.ids), len(given.ids)
        if pairs is not None:
            at = check_pairs(pairs, nq, nc)
            out = np.empty(len(at), np.float32)
            with exact_arithmetic():
                for a in range(0, len(at), size):
                    part = at[a : a + size]
                    q = net.encode(tensors_of(asked, part[:, 0], device), 0)
                    c = net.encode(tensors_of(given, part[:, 1], device), 1)
                    out[a : a + size] = net.pairs(*q, *c).cpu().numpy()
            return out
        table, step = np.empty((nq, nc), np.float32), min(size, nc)
        with exact_arithmetic():
            for b in range(0, nc, step):
                c = net.encode(tensors_of(given, slice(b, b + step), device), 1)
                for a in range(0, nq, max(1, size // step)):
                    some = slice(a, a + max(1, size // step))
                    q = net.encode(tensors_of(asked, some, device), 0)
                    table[some, b : b + step] = net.every(*q, *c).cpu().numpy()
        return label_scores(table, asked, given)

    def matches(self, queries: Any, candidates: Any, pairs: Any) -> np.ndarray:
        """Which token of a candidate matches which of a query: the cosines that a score is made of.

        Parameters
        ----------
        queries, candidates : sets of tokens
        pairs : int array (n, 2)
            Rows of a query and of a candidate.

        Returns
        -------
        ndarray (n, query token, candidate token) float32
            After the learned maps, if there are any; NaN where there is no token.

        Raises
        ------
        ConfigError
            Of "cross_attention", whose scores are no function of them.
        """
        if self.kind == "cross_attention":
            raise ConfigError('cross_attention compares no tokens one by one; matches are of "maxsim" and "kernel".')
        asked, given = token_sets(queries, "queries"), token_sets(candidates, "candidates")
        at, device = check_pairs(pairs, len(asked.ids), len(given.ids)), resolve_device(self.device)
        net = self._net(asked.width, given.width).to(device)
        with exact_arithmetic():
            q, q_mask = net.encode(tensors_of(asked, at[:, 0], device), 0)
            c, c_mask = net.encode(tensors_of(given, at[:, 1], device), 1)
            found = torch.einsum("nsd,ntd->nst", q, c).masked_fill(~(q_mask[:, :, None] & c_mask[:, None]), torch.nan)
        return np.asarray(found.cpu().numpy())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the ranker to a folder."""
        record = {"params": self.get_params(), "widths": list(getattr(self, "widths_", ()))}
        model = getattr(self, "model_", None)
        return write_folder(path, _KIND, record, {} if model is None else model.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a ranker that `save` wrote."""
        record, tensors = read_folder(path, _KIND)
        with reading(path, _KIND.name):
            made = cls(**record["params"])
            if record["widths"]:
                made.widths_ = tuple(record["widths"])
                made.model_ = made._build(*made.widths_).requires_grad_(False).eval()
                made.model_.load_state_dict(tensors)
        return made

    def _build(self, query: int, candidate: int) -> Any:
        """A network with its first weights."""
        kind = one_of("kind of ranker", self.kind, ("maxsim", "kernel", "cross_attention"))
        dims = None if self.dims is None else check_whole("dims", self.dims)
        check_whole("kernels", self.kernels, least=2)
        depth, heads = check_whole("depth", self.depth), check_whole("heads", self.heads)
        if dims is None and kind != "cross_attention" and query != candidate:
            raise DataError(
                f"tokens of {query} features in queries and of {candidate} in candidates; {kind!r} compares them as "
                "they are where dims=None. Next step: tokens of one space, or dims=64, which learns a map for each."
            )
        if kind == "cross_attention" and (dims or 64) % heads:
            raise ConfigError(f"dims={dims or 64} of {heads} heads is not legal; it must be a multiple of heads.")
        check_whole("seed", self.seed, least=0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if kind == "cross_attention":
                return _Attended(query, candidate, dims or 64, depth, heads)
            return _Compared(query, candidate, dims, self.kernels if kind == "kernel" else 0)

    def _net(self, query: int, candidate: int) -> Any:
        found = getattr(self, "model_", None)
        if found is None:
            if self.kind != "maxsim" or self.dims is not None:
                raise ConfigError(
                    f"this CrossRanker(kind={self.kind!r}, dims={self.dims}) was not fitted; only maxsim without dims "
                    "scores tokens as they are. Next step: fit(queries, candidates, relevance)."
                )
            return self._build(query, candidate).requires_grad_(False).eval()
        if (query, candidate) != self.widths_:
            raise DataError(
                f"tokens have {query} and {candidate} features; the ranker was fitted on {self.widths_[0]} and "
                f"{self.widths_[1]}. Next step: the same layers as in training."
            )
        return found


class _Sides(nn.Module):
    """Linear maps of unit tokens of both sides, which begin as the same map where both have one width."""

    def __init__(self, query: int, candidate: int, dims: int | None, bias: bool = False) -> None:
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(w, dims, bias) if dims else nn.Identity() for w in (query, candidate)])
        if dims and query == candidate:
            first = nn.init.orthogonal_(torch.empty(dims, query))
            for each in self.maps:
                each.load_state_dict({"weight": first}, strict=False)

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        return self.maps[side](F.normalize(tokens, dim=-1))


class _Compared(nn.Module):
    """Score of the cosines of two sets of tokens: their maxima, or kernel pooling."""

    centres: Tensor

    def __init__(self, query: int, candidate: int, dims: int | None, kernels: int) -> None:
        super().__init__()
        self.sides = _Sides(query, candidate, dims)
        # The logarithm of the scale, so that training cannot turn the order around.
        self.gain, self.offset = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.register_buffer("centres", torch.linspace(1, -1, kernels) if kernels else torch.zeros(0))
        self.weights = nn.Linear(kernels, 1, bias=False) if kernels else nn.Identity()

    def encode(self, part: tuple[Tensor, Tensor], side: int) -> tuple[Tensor, Tensor]:
        return F.normalize(self.sides(part[0], side), dim=-1), part[1]

    def pairs(self, q: Tensor, q_mask: Tensor, c: Tensor, c_mask: Tensor) -> Tensor:
        return self._read(torch.einsum("nsd,ntd->nst", q, c), q_mask, c_mask)

    def every(self, q: Tensor, q_mask: Tensor, c: Tensor, c_mask: Tensor) -> Tensor:
        return self._read(torch.einsum("qsd,ctd->qcst", q, c), q_mask[:, None], c_mask[None])

    def _read(self, cosine: Tensor, q_mask: Tensor, c_mask: Tensor) -> Tensor:
        if not len(self.centres):
            best = cosine.masked_fill(~c_mask[..., None, :], -torch.inf).amax(-1)
            return (best * q_mask).sum(-1) * self.gain.exp() + self.offset
        width = (self.centres[0] - self.centres[1]) / 2
        # One kernel at a time: all at once would hold as many copies of the cosines.
        pooled = [
            (torch.exp(-0.5 * ((cosine - centre) / width) ** 2) * c_mask[..., None, :]).sum(-1).clamp(min=1e-10).log()
            for centre in self.centres
        ]
        # The factor of KNRM, which keeps the logarithms of empty kernels small.
        features = 0.01 * (torch.stack(pooled, -1) * q_mask[..., None]).sum(-2)
        return self.weights(features)[..., 0] * self.gain.exp() + self.offset


class _Attended(nn.Module):
    """Score that a register token reads from blocks over the tokens of both sides."""

    def __init__(self, query: int, candidate: int, dims: int, depth: int, heads: int) -> None:
        super().__init__()
        self.sides = _Sides(query, candidate, dims, bias=True)
        self.side = nn.Parameter(0.02 * torch.randn(2, dims))
        self.stack = Stack([Block(Attention(dims, heads), hidden=2 * dims) for _ in range(depth)], registers=1)
        self.norm, self.head = nn.LayerNorm(dims), nn.Linear(dims, 1)
        self.scale = dims**0.5

    def encode(self, part: tuple[Tensor, Tensor], side: int) -> tuple[Tensor, Tensor]:
        return self.scale * self.sides(part[0], side) + self.side[side], part[1]

    def pairs(self, q: Tensor, q_mask: Tensor, c: Tensor, c_mask: Tensor) -> Tensor:
        there = torch.cat([q_mask, c_mask], 1)
        log_weight = torch.zeros(there.shape, device=q.device).masked_fill(~there, -torch.inf)
        read = self.stack(torch.cat([q, c], 1), log_weight=log_weight, keep=slice(0, 1))[0][:, 0]
        return self.head(self.norm(read))[:, 0]

    def every(self, q: Tensor, q_mask: Tensor, c: Tensor, c_mask: Tensor) -> Tensor:
        n, m = len(q), len(c)
        asked = (x.repeat_interleave(m, 0) for x in (q, q_mask))
        given = (x.repeat(n, *[1] * (x.ndim - 1)) for x in (c, c_mask))
        return self.pairs(*asked, *given).view(n, m)


def check_pairs(pairs: Any, n_queries: int, n_candidates: int) -> np.ndarray:
    """Pairs (n, 2) of rows, if they are rows.

    >>> check_pairs([[0, 1]], 1, 2).tolist()
    [[0, 1]]
    """
    at = np.asarray(pairs)
    if at.ndim != 2 or at.shape[1] != 2 or at.dtype.kind not in "iu":
        raise DataError(f"pairs have shape {at.shape} and dtype {at.dtype}; expected rows (n, 2) of two integers.")
    if len(at) and (at.min() < 0 or at[:, 0].max() >= n_queries or at[:, 1].max() >= n_candidates):
        raise DataError(
            f"pairs name rows {at.min(0).tolist()} to {at.max(0).tolist()} of {n_queries} queries and {n_candidates} "
            "candidates; legal are 0 to one less."
        )
    return at.astype(np.int64)


def label_scores(table: np.ndarray, asked: TokenSets, given: TokenSets) -> np.ndarray | xr.DataArray:
    """Scores with the ids of what is labelled.

    >>> sets = TokenSets(np.zeros((1, 1, 1)), np.ones((1, 1), bool), np.array(["a"]), "stimulus")
    >>> label_scores(np.zeros((1, 1)), sets, sets).dims
    ('query', 'candidate')
    """
    if not (asked.dim or given.dim):
        return table
    coords = {name: s.ids for name, s in (("query", asked), ("candidate", given)) if s.dim}
    return xr.DataArray(table, dims=("query", "candidate"), coords=coords, name="score")


def tensors_of(sets: TokenSets, rows: Any, device: str) -> tuple[Tensor, Tensor]:
    """Tokens and mask of some sets on a device."""
    some = (np.ascontiguousarray(sets.values[rows]), np.ascontiguousarray(sets.mask[rows]))
    return torch.from_numpy(some[0]).to(device), torch.from_numpy(some[1]).to(device)


def _draw(grades: Tensor, size: int) -> Tensor:
    """Columns (row, size): up to half of them of higher grades than the lowest, the rest drawn; unjudged ones last."""
    there = ~grades.isnan()
    lowest = grades.nan_to_num(torch.inf).amin(1, keepdim=True)
    keys = torch.rand(grades.shape)
    relevant = there & (grades > lowest)
    place = keys.masked_fill(~relevant, 2.0).argsort(1).argsort(1)
    keys = keys.masked_fill(relevant & (place < max(1, size // 2)), -1.0)
    return keys.masked_fill(~there, 3.0).topk(size, dim=1, largest=False, sorted=True).indices


def _grades(relevance: Any, asked: TokenSets, given: TokenSets) -> np.ndarray:
    """Relevance (query, candidate) float32 in the order of the sets."""
    shape = (len(asked.ids), len(given.ids))
    if relevance is None:
        by_id = bool(asked.dim and given.dim)
        if not by_id and shape[0] != shape[1]:
            raise DataError(
                f"{shape[0]} queries and {shape[1]} candidates without relevance, and not both with ids. Next step: "
                "relevance=, an array (query, candidate)."
            )
        names = (asked.ids, given.ids) if by_id else (np.arange(shape[0]), np.arange(shape[1]))
        found = (names[0][:, None] == names[1][None]).astype(np.float32)
    else:
        if isinstance(relevance, xr.DataArray) and relevance.ndim == 2:
            labels: list[Any] = [relevance[d].values if d in relevance.coords else None for d in relevance.dims]
        else:
            labels = [relevance.index, relevance.columns] if isinstance(relevance, pd.DataFrame) else [None, None]
        found = np.asarray(as_numbers(relevance, "relevance"), np.float32)
        for axis, (label, sets) in enumerate(zip(labels, (asked, given))):
            if label is not None:
                at = pd.Index([str(x) for x in label]).get_indexer(pd.Index(sets.ids))
                if (at < 0).any():
                    what = ("queries", "candidates")[axis]
                    raise DataError(
                        f"relevance lacks {int((at < 0).sum())} of {len(at)} {what}, the first is "
                        f"{sets.ids[at < 0][0]!r}; it names {[str(x) for x in label[:3]]}, ... Next step: the ids of "
                        "the tokens, with NaN where nobody judged."
                    )
                found = found.take(at, axis)
    if found.shape != shape:
        raise DataError(f"relevance has shape {found.shape}; expected (query, candidate) = {shape}.")
    if np.isinf(found).any() or (found < 0).any():
        raise DataError(
            f"relevance is {np.nanmin(found)} to {np.nanmax(found)}; legal are finite grades of at least 0."
        )
    low, high = np.nan_to_num(found, nan=np.inf).min(1), np.nan_to_num(found, nan=-np.inf).max(1)
    if not (high > low).any():
        raise DataError("in no query does one candidate have a higher relevance than another; nothing can be learned.")
    return found
