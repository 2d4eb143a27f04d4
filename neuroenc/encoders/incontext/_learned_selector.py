"""A selector that learns from an encoder which stimuli made it better."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroenc._core.checks import at_least, check_whole, make_rng
from neuroenc._core.device import exact_arithmetic
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.training import train
from neuroenc._core.weights import Kind, read_folder, reading, write_folder
from neuroenc.embedding import ranking_loss
from neuroenc.encoders.incontext._empirical_bayes import EmpiricalBayesRidge
from neuroenc.encoders.incontext._evidence import Floats, covariance_root
from neuroenc.encoders.incontext._prior import WeightPrior, pairs_of
from neuroenc.encoders.incontext._selection import prior_ratios
from neuroenc.retrieval import SupportSelector, check_target

_KIND = Kind("learned selector", "selector.json", "selector.safetensors", ("params", "prior", "sha256"))
# Directions of the features that are described, voxels and queries of an episode, classes of signal-to-noise ratios.
_DIRECTIONS, _VOXELS, _QUERIES, _CLASSES = 48, 150, 200, 4
_PARAMS = (
    "width",
    "iterations",
    "n_episodes",
    "n_candidates",
    "n_pool",
    "epochs",
    "batch_size",
    "learning_rate",
    "seed",
)


class _Subject(NamedTuple):
    """Whitened stimuli (n, feature) whose inner products are the prior's covariance of responses, centred responses
    (n, voxel) and their ratios of signal scale to noise variance (voxel,)."""

    Z: Floats
    Y: Floats
    ratios: Floats


class _Episode(NamedTuple):
    summary: np.ndarray  # of the subject's support and of what is to be predicted
    demos: np.ndarray  # (candidate, direction)
    feedback: np.ndarray  # (candidate,)


class LearnedSelector(SupportSelector):
    r"""Learned selector of stimuli (unified demonstration retriever): a bi-encoder of subjects' summaries and pictures,
    trained on how much each picture made an encoder better.

    .. math:: s_j = q(u)^T d(x_j), \qquad \Delta_j = L(S) - L(S \cup \{x_j\}), \qquad
              \ell = 4\, \ell_\lambda(s, \Delta) - \log \frac{e^{s_{j^*}}}{\sum_{i \in B} e^{s_i}}

    where L is the held-out loss (share of response variance that is not explained) of the prior's empirical-Bayes
    encoder on the support S of a training subject, :math:`\ell_\lambda` LambdaMRR over the candidates of an episode and
    B the batch's candidates. The summary u: number, mean and second moments of what was shown, mean and spread of the
    stimuli to predict, along the directions of largest prior signal, and the energies of the weights there given the
    responses so far, if there are some. Candidates of the first iteration are random; those of later ones, and the
    supports, are mined with the selector as it stands.

    The closed form of what it learns is `PriorSelector`'s expected accuracy: prefer that.

    Parameters
    ----------
    prior : WeightPrior
        Of the training subjects' voxels.
    width : int
    iterations : int
        Rounds of mining and training.
    n_episodes, n_candidates, n_pool : int
        Of each round: supports, candidates scored for each, and stimuli that they are mined from.
    epochs, batch_size, learning_rate
        Of training, with Adam.
    target : array (m, feature), optional
        Stimuli that are to be predicted; by default the pool.
    seed : int

    Attributes
    ----------
    n_features_in_ : int
    regret_ : list of float
        After each round, in episodes of it that were not trained on: what the candidate of the highest score misses of
        the best one's feedback, over what a random candidate misses.

    References
    ----------
    Li et al. (2023), Unified demonstration retriever for in-context learning, ACL.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((150, 4)), rng.standard_normal((4, 30))
    >>> Y = X @ W + rng.standard_normal((150, 30))
    >>> selector = LearnedSelector(WeightPrior.from_responses(X, Y), n_episodes=10, n_pool=40, epochs=2)
    >>> selector = selector.fit([X], [Y], k=5)
    >>> len(selector.select(X, 5))
    5
    """

    def __init__(
        self,
        prior: WeightPrior,
        *,
        width: int = 32,
        iterations: int = 2,
        n_episodes: int = 1500,
        n_candidates: int = 24,
        n_pool: int = 200,
        epochs: int = 6,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        target: Any = None,
        seed: int = 0,
    ) -> None:
        self.prior = prior
        self.width = width
        self.iterations = iterations
        self.n_episodes = n_episodes
        self.n_candidates = n_candidates
        self.n_pool = n_pool
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.target = target
        self.seed = seed

    def fit(self, X: Any, Y: Any, *, k: int = 20, progress: bool = False) -> Self:
        """Learn from training subjects.

        Parameters
        ----------
        X : list of arrays (n, feature), one per subject
        Y : list of arrays (n, voxel)
            Responses without NaN.
        k : int
            Largest support.
        progress : bool

        Raises
        ------
        DataError
            Subjects of another feature space, or with too few stimuli for pools and queries.
        """
        k, m = check_whole("k", k), check_whole("n_candidates", self.n_candidates, 2)
        n_pool = check_whole("n_pool", self.n_pool)
        pairs = pairs_of(X, Y)
        if not isinstance(self.prior, WeightPrior):
            raise ConfigError(f"prior={self.prior!r} is not a WeightPrior. Next step: WeightPrior.from_responses.")
        if pairs[0][0].shape[1] != self.prior.n_features:
            raise DataError(f"subjects have {pairs[0][0].shape[1]} features, the prior {self.prior.n_features}.")
        least = min(len(x) for x, _ in pairs)
        if n_pool < k + m or least < n_pool + 20:
            raise DataError(
                f"supports of up to k={k} and {m} candidates from pools of n_pool={n_pool}, and a subject has {least} "
                f"stimuli. Next step: n_pool of at least {k + m}, and 20 stimuli more, to predict."
            )
        self.n_features_in_ = self.prior.n_features
        subjects = [self._subject(x, y) for x, y in pairs]
        self._find_directions(np.concatenate([s.Z for s in subjects]))
        net = self._build()
        self.model_: _BiEncoder | None = None
        held: list[_Episode] = []
        self.regret_: list[float] = []
        settings: dict[str, Any] = {"batch_size": check_whole("batch_size", self.batch_size), "show": progress}
        settings["learning_rate"] = at_least("learning_rate", self.learning_rate, above=True)
        for turn in range(check_whole("iterations", self.iterations)):
            rng = make_rng(int(np.random.SeedSequence([self.seed, turn]).generate_state(1)[0]))
            made = [self._episode(subjects[n % len(subjects)], k, m, rng) for n in range(self.n_episodes)]
            tested = made[: max(1, len(made) // 10)]
            held += made[len(tested) :] or tested
            u, d, f = (torch.as_tensor(np.stack(part)) for part in zip(*held))
            if turn == 0:
                net.standardise(u, d)

            def loss(batch: np.ndarray, u: Tensor = u, d: Tensor = d, f: Tensor = f) -> Tensor:
                rows = torch.as_tensor(batch)
                query, demo = net.query(u[rows]), net.demo(d[rows])
                own = torch.einsum("bw,bmw->bm", query, demo)
                best = f[rows].argmax(1)
                every = query @ demo.flatten(0, 1).T
                right = torch.arange(len(rows)) * demo.shape[1] + best
                return 4 * ranking_loss(own, f[rows], "lambda_mrr") / demo.shape[1] + F.cross_entropy(every, right)

            net.requires_grad_(True)
            train(net, loss, len(held), epochs=self.epochs, seed=self.seed + turn, desc="learned selector", **settings)
            self.model_ = net.requires_grad_(False)
            u, d, f = (torch.as_tensor(np.stack(part)) for part in zip(*tested))
            with exact_arithmetic():
                scores = torch.einsum("bw,bmw->bm", net.query(u), net.demo(d))
            missed = f.max(1).values - f.gather(1, scores.argmax(1, keepdim=True))[:, 0]
            self.regret_.append(float(missed.sum() / (f.max(1).values - f.mean(1)).sum()))
        return self

    def _subject(self, x: Floats, y: Floats) -> _Subject:
        fitted = EmpiricalBayesRidge(self.prior, adapt="none").fit(x, y)
        ratios = np.asarray(fitted.prior_scale_ / fitted.noise_variance_, dtype=np.float64)
        centred = x - x.mean(axis=0)
        rest = y - y.mean(axis=0) - centred @ self.prior.mean[:, None]
        return _Subject(centred @ covariance_root(self.prior.cov), rest / y.std(axis=0), ratios)

    def _find_directions(self, Z: Floats) -> None:
        values, vectors = np.linalg.eigh(Z.T @ Z / len(Z))
        order = np.argsort(-values)[: min(_DIRECTIONS, Z.shape[1])]
        self.directions_ = vectors[:, order]
        self.spread_ = np.sqrt(np.maximum(values[order], 1e-12 * values.max()))

    def _episode(self, subject: _Subject, k: int, m: int, rng: np.random.Generator) -> _Episode:
        """A support of a training subject, and what each candidate for its next stimulus does to the held-out loss."""
        order = rng.permutation(len(subject.Z))
        pool, query = order[: self.n_pool], order[self.n_pool :][:_QUERIES]
        voxels = rng.permutation(subject.Y.shape[1])[:_VOXELS]
        Z, Y, ratios = subject.Z[pool], subject.Y[np.ix_(pool, voxels)], subject.ratios[voxels]
        Zq, Yq = subject.Z[query], subject.Y[np.ix_(query, voxels)]
        size, mined = int(rng.integers(0, k + 1)), self.model_ is not None and rng.random() < 0.5
        told = bool(size >= 3 and rng.random() < 0.5)
        if mined:
            free = np.ones(len(pool), dtype=bool)
            rows = self._greedy(Z, Zq, size, lambda: free, lambda row: free.__setitem__(row, False))
            support = np.array(rows, dtype=np.int64)
        else:
            support = np.arange(size)
        left = np.setdiff1d(np.arange(len(pool)), support)
        summary = self._summary(Z, Zq, support, Y[support] if told else None, float(np.median(ratios)))
        candidates = rng.permutation(left)[:m]
        if self.model_ is not None:
            with exact_arithmetic():
                scores = self._scores(summary, self._demos(Z))[left]
            top = left[np.argsort(-scores)[: m // 2]]
            candidates = np.concatenate([top, np.setdiff1d(candidates, top)])[:m]
        gains = _feedback(Z, Y, Zq, Yq, ratios, support, candidates)
        return _Episode(summary, self._described(Z[candidates]), gains.astype(np.float32))

    def _described(self, Z: Floats) -> np.ndarray:
        """Candidates along the directions of most prior signal, then the lengths of candidates (n, direction + 2)."""
        along = Z @ self.directions_
        total = (self.spread_**2).sum()
        lengths = np.stack([(Z**2).sum(axis=1), (along**2).sum(axis=1)], axis=1) / total
        return np.concatenate([along / self.spread_, np.log(lengths + 1e-6)], axis=1).astype(np.float32)

    def _summary(
        self, Z: Floats, target: Floats, shown: np.ndarray, responses: Floats | None, ratio: float
    ) -> np.ndarray:
        """Of what was shown, what is to be predicted, and the energies of weights that responses (n, voxel) show."""
        r = len(self.spread_)
        along, aim = Z[shown] @ self.directions_ / self.spread_, target @ self.directions_ / self.spread_
        moments = np.log1p((along**2).sum(axis=0))
        middle = along.sum(axis=0) / np.sqrt(len(shown) + 1)
        energy = np.zeros(r)
        if responses is not None:
            # Of the posterior mean along each direction, over what the prior expects of it.
            A = along * self.spread_
            gain = ratio * A.T @ np.linalg.inv(np.eye(len(A)) + ratio * A @ A.T)
            expected = np.maximum(np.einsum("rn,nr->r", gain, A), 1e-6) / ratio
            energy = np.log(((gain @ responses) ** 2).mean(axis=1) / expected + 1e-3)
        counts = [np.log1p(len(shown)), float(responses is not None)]
        parts = [moments, middle, aim.mean(axis=0), np.log(aim.var(axis=0) + 1e-3), energy, counts]
        return np.concatenate(parts).astype(np.float32)

    def _demos(self, Z: Floats) -> Tensor:
        assert self.model_ is not None
        return self.model_.demo(torch.as_tensor(self._described(Z))[None])[0]

    def _scores(self, summary: np.ndarray, demos: Tensor) -> np.ndarray:
        assert self.model_ is not None
        return np.asarray((demos @ self.model_.query(torch.as_tensor(summary)[None])[0]).numpy())

    def _greedy(
        self,
        Z: Floats,
        target: Floats,
        k: int,
        mask: Callable[[], np.ndarray],
        take: Callable[[int], None],
        shown: np.ndarray | None = None,
        responses: Floats | None = None,
        ratio: float = 1.0,
    ) -> list[int]:
        before = np.zeros(0, dtype=np.int64) if shown is None else shown
        rows: list[int] = []
        with exact_arithmetic():
            demos = self._demos(Z)
            for _ in range(k):
                # Energies are those of the responses, whatever is chosen in this batch.
                summary = self._summary(Z, target, np.concatenate([before, rows]).astype(np.int64), None, ratio)
                if responses is not None:
                    told = self._summary(Z, target, before, responses, ratio)
                    r = len(self.spread_)
                    summary[4 * r : 5 * r], summary[-1] = told[4 * r : 5 * r], 1.0
                scores = self._scores(summary, demos)
                rows.append(int(np.argmax(np.where(mask(), scores, -np.inf))))
                take(rows[-1])
        return rows

    def _choose(
        self,
        values: np.ndarray,
        k: int,
        eligible: Any,
        shown: np.ndarray,
        responses: np.ndarray | None,
        voxels: np.ndarray | None,
    ) -> list[int]:
        if getattr(self, "model_", None) is None:
            raise ConfigError("this LearnedSelector was not fitted. Next step: fit(X, Y), or load(folder).")
        if values.shape[1] != self.n_features_in_:
            raise DataError(
                f"the pool has {values.shape[1]} features; the selector was fitted to {self.n_features_in_}. "
                "Next step: embed the pool as the training subjects' stimuli."
            )
        root, centre = covariance_root(self.prior.cov), values.mean(axis=0)
        Z, target = (values - centre) @ root, (check_target(self.target, values) - centre) @ root
        ratios, shares = prior_ratios(self.prior, values - centre, 5)
        known = None
        if responses is not None and len(shown) >= 3:
            Y = responses[:, ~np.isnan(responses).any(axis=0)]
            scale = Y.std(axis=0)
            Y = ((Y - Y.mean(axis=0)) / np.where(scale > 0, scale, 1.0))[:, scale > 0]
            known = Y if Y.shape[1] else None
        return self._greedy(
            Z, target, k, eligible.mask, eligible.take, shown, known, float(np.exp(shares @ np.log(ratios)))
        )

    def _build(self) -> _BiEncoder:
        r = len(self.spread_)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(check_whole("seed", self.seed, 0))
            return _BiEncoder(5 * r + 2, r + 2, check_whole("width", self.width))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fitted selector, its prior included, to a folder."""
        if getattr(self, "model_", None) is None:
            raise ConfigError("this LearnedSelector was not fitted. Next step: fit(X, Y) before save.")
        assert self.model_ is not None
        parts, rest = self.prior.to_parts()
        params = {name: getattr(self, name) for name in _PARAMS}
        tensors = {f"prior:{name}": torch.as_tensor(np.array(part)) for name, part in parts.items()}
        tensors |= {"directions": torch.as_tensor(self.directions_), "spread": torch.as_tensor(self.spread_)}
        tensors |= {f"net:{name}": part for name, part in self.model_.state_dict().items()}
        return write_folder(path, _KIND, {"params": params, "prior": rest, "regret": self.regret_}, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a selector that `save` wrote."""
        record, tensors = read_folder(path, _KIND)

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}

        with reading(path, _KIND.name):
            prior: dict[str, Any] = {k: v.numpy() for k, v in part("prior:").items()}
            made = cls(WeightPrior(**prior, **record["prior"]), **record["params"])
            made.directions_, made.spread_ = tensors["directions"].numpy(), tensors["spread"].numpy()
            made.n_features_in_, made.regret_ = made.prior.n_features, record["regret"]
            net = made._build().requires_grad_(False).eval()
            net.load_state_dict(part("net:"))
            made.model_ = net
        return made


def _feedback(
    Z: Floats,
    Y: Floats,
    Zq: Floats,
    Yq: Floats,
    ratios: Floats,
    support: np.ndarray,
    candidates: np.ndarray,
) -> Floats:
    """By how much the explained variance of queries, mean over voxels, grows as each candidate enters the support.

    Voxels are put in classes of like ratios, and each class shares a posterior.
    """
    Zs, Zc = Z[support], Z[candidates]
    total, scale = np.zeros(len(candidates)), Yq.var(axis=0)
    order = np.argsort(ratios)
    for part in np.array_split(order[scale[order] > 0], _CLASSES):
        if not len(part):
            continue
        noise = 1 / np.exp(np.log(ratios[part]).mean())
        inner = np.linalg.inv(Zs @ Zs.T + noise * np.eye(len(Zs)))
        mean_q, mean_c = (A @ Zs.T @ inner @ Y[np.ix_(support, part)] for A in (Zq, Zc))
        left_q = Zq @ Zc.T - Zq @ Zs.T @ inner @ (Zs @ Zc.T)
        left_c = (Zc**2).sum(axis=1) - np.einsum("cs,st,ct->c", Zc @ Zs.T, inner, Zc @ Zs.T)
        step = (Y[np.ix_(candidates, part)] - mean_c) / (noise + np.maximum(left_c, 0))[:, None]
        error, turn = Yq[:, part] - mean_q, left_q - left_q.mean(axis=0)
        error = error - error.mean(axis=0)
        fall = 2 * (turn.T @ error) * step - (turn**2).sum(axis=0)[:, None] * step**2
        total += (fall / len(Zq) / scale[part]).sum(axis=1)
    return total / max(1, int((scale > 0).sum()))


class _BiEncoder(nn.Module):
    def __init__(self, query: int, demo: int, width: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(n, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for n in (query, demo)
        )
        for name, n in (("query", query), ("demo", demo)):
            self.register_buffer(f"{name}_mean", torch.zeros(n))
            self.register_buffer(f"{name}_sd", torch.ones(n))

    def standardise(self, query: Tensor, demo: Tensor) -> None:
        for name, part in (("query", query), ("demo", demo.flatten(0, 1))):
            getattr(self, f"{name}_mean").copy_(part.mean(0))
            getattr(self, f"{name}_sd").copy_(part.std(0).clamp(min=1e-3))

    def query(self, summary: Tensor) -> Tensor:
        scaled: Tensor = self.towers[0]((summary - self.get_buffer("query_mean")) / self.get_buffer("query_sd"))
        return scaled

    def demo(self, described: Tensor) -> Tensor:
        scaled: Tensor = self.towers[1]((described - self.get_buffer("demo_mean")) / self.get_buffer("demo_sd"))
        return scaled
