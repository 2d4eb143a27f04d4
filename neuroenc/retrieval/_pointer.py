"""A pointer network that imitates a selector of stimuli."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import at_least, check_whole
from neuroenc._core.device import exact_arithmetic, resolve_device
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.training import train
from neuroenc._core.weights import Kind, read_folder, reading, write_folder
from neuroenc.retrieval._select import DOptimalSelector, Eligible, SupportSelector

_KIND = Kind("pointer selector", "pointer.json", "pointer.safetensors", ("params", "n_features", "sha256"))


class PointerSelector(SupportSelector):
    r"""Pointer network over a pool of any size: imitates the choices of another selector, one stimulus after the other.

    .. math:: u_j = v^T \tanh\bigl(W_1 e_j + W_2 h + W_3\, k_j \circ (k_j - M k_j)\bigr), \qquad
              p(j) = \mathrm{softmax}_j(u)

    over the stimuli that may be chosen, for embeddings e and keys k of candidates, which know the pool by its mean and
    no positions; h is the state of a recurrent unit that reads what was chosen, and M a memory of chosen unit keys by
    the delta rule, :math:`M' = M + \beta\, (\hat k - M \hat k)\, \hat k^T`, so that :math:`k_j - M k_j` is what the
    chosen stimuli leave of a candidate. A step costs O(pool).

    The designs that it imitates are closed forms that take milliseconds (`DOptimalSelector`): prefer them. It is for
    teachers that are slow, such as ones that fit encoders. Responses are not read; stimuli that were shown are.

    Parameters
    ----------
    width : int
        Of embeddings, keys and state.
    epochs, batch_size, learning_rate
        Of training, with Adam.
    seed : int
    device : str

    Attributes
    ----------
    n_features_in_ : int
    agreement_ : float
        Share of the teacher's choices in the training pools that are this network's first choice, given those before.

    References
    ----------
    Vinyals, Fortunato & Jaitly (2015), Pointer networks, NeurIPS. Zaheer et al. (2017), Deep sets, NeurIPS. Schlag,
    Irie & Schmidhuber (2021), Linear transformers are secretly fast weight programmers, ICML.

    Examples
    --------
    >>> import numpy as np
    >>> pools = np.random.default_rng(0).standard_normal((300, 20, 3)) * [3.0, 1.0, 0.1]
    >>> pointer = PointerSelector(width=16, epochs=5).fit(pools, k=3)
    >>> len(pointer.select(np.random.default_rng(1).standard_normal((200, 3)), 5))
    5
    """

    def __init__(
        self,
        *,
        width: int = 64,
        epochs: int = 30,
        batch_size: int = 64,
        learning_rate: float = 2e-3,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.width = width
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.seed = seed
        self.device = device

    def fit(self, pools: Any, teacher: SupportSelector | None = None, *, k: int = 8, progress: bool = False) -> Self:
        """Learn to choose as a teacher does, its choices before each being given.

        Parameters
        ----------
        pools : sequence of arrays (n, feature)
            Pools of any sizes, more than ``k`` stimuli each.
        teacher : SupportSelector, optional
            By default ``DOptimalSelector()``.
        k : int
            Choices in each pool; later ones are extrapolated.
        progress : bool

        Raises
        ------
        DataError
            Pools of different features, too few stimuli, values that are not finite.
        """
        k = check_whole("k", k)
        held = _pools(pools, k)
        teacher = DOptimalSelector() if teacher is None else teacher
        if not isinstance(teacher, SupportSelector):
            raise ConfigError(f"teacher={teacher!r} is not a SupportSelector. Next step: DOptimalSelector().")
        chosen = torch.as_tensor(np.array([teacher.select(pool, k) for pool in held]))
        sizes = torch.tensor([len(pool) for pool in held])
        values = nn.utils.rnn.pad_sequence([_scaled(pool) for pool in held], batch_first=True)
        mask = torch.arange(values.shape[1])[None] < sizes[:, None]
        device = resolve_device(self.device)
        net = self._build(values.shape[2]).to(device)

        def loss(batch: np.ndarray) -> Tensor:
            rows = torch.as_tensor(batch)
            logits = net(values[rows].to(device), mask[rows].to(device), chosen[rows].to(device))
            return F.cross_entropy(logits.flatten(0, 1), chosen[rows].to(device).flatten())

        settings: dict[str, Any] = {"epochs": check_whole("epochs", self.epochs), "seed": self.seed, "show": progress}
        settings["learning_rate"] = at_least("learning_rate", self.learning_rate, above=True)
        settings["batch_size"] = check_whole("batch_size", self.batch_size)
        train(net, loss, len(held), desc="pointer network", **settings)
        with exact_arithmetic():
            parts = torch.arange(len(held)).split(settings["batch_size"])
            logits = (net(values[r].to(device), mask[r].to(device), chosen[r].to(device)).argmax(-1) for r in parts)
            same = [found.cpu() == chosen[r] for found, r in zip(logits, parts)]
        self.agreement_ = float(torch.cat(same).double().mean())
        self.model_ = net.cpu().requires_grad_(False)
        self.n_features_in_ = values.shape[2]
        return self

    def _choose(self, values: np.ndarray, k: int, eligible: Eligible, shown: np.ndarray, *_: Any) -> list[int]:
        net = getattr(self, "model_", None)
        if net is None:
            raise ConfigError("this PointerSelector was not fitted. Next step: fit(pools, teacher), or load(folder).")
        if values.shape[1] != self.n_features_in_:
            raise DataError(
                f"the pool has {values.shape[1]} features; the selector was fitted to {self.n_features_in_}. "
                "Next step: embed the pool as those that it was fitted to."
            )
        rows: list[int] = []
        with exact_arithmetic():
            state = net.begin(_scaled(values)[None], torch.ones(1, len(values), dtype=torch.bool))
            for row in shown:
                state = net.step(state, torch.tensor([int(row)]))
            for _place in range(k):
                logits = net.point(state)[0].masked_fill(~torch.as_tensor(eligible.mask()), -torch.inf)
                rows.append(int(logits.argmax()))
                eligible.take(rows[-1])
                state = net.step(state, torch.tensor([rows[-1]]))
        return rows

    def _build(self, n_features: int) -> _PointerNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(check_whole("seed", self.seed, 0))
            return _PointerNetwork(n_features, check_whole("width", self.width))

    def _params(self) -> dict[str, Any]:
        names = ("width", "epochs", "batch_size", "learning_rate", "seed", "device")
        return {name: getattr(self, name) for name in names}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fitted selector to a folder."""
        if not hasattr(self, "model_"):
            raise ConfigError("this PointerSelector was not fitted. Next step: fit(pools, teacher) before save.")
        record = {"params": self._params(), "n_features": self.n_features_in_, "agreement": self.agreement_}
        return write_folder(path, _KIND, record, self.model_.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a selector that `save` wrote."""
        record, tensors = read_folder(path, _KIND)
        with reading(path, _KIND.name):
            made = cls(**record["params"])
            made.n_features_in_, made.agreement_ = int(record["n_features"]), float(record["agreement"])
            made.model_ = made._build(made.n_features_in_).requires_grad_(False).eval()
            made.model_.load_state_dict(tensors)
        return made


def _pools(pools: Any, k: int) -> list[np.ndarray]:
    found = [np.asarray(as_numpy(pool, "a pool"), dtype=np.float64) for pool in pools]
    if not found or any(pool.ndim != 2 or len(pool) <= k for pool in found):
        shapes = sorted({pool.shape for pool in found})[:3]
        raise DataError(f"pools have shapes {shapes}, ...; expected (n, feature) with more than k={k} stimuli each.")
    if len({pool.shape[1] for pool in found}) > 1 or not all(np.isfinite(pool).all() for pool in found):
        raise DataError("pools have different numbers of features, or values that are not finite.")
    return found


def _scaled(pool: np.ndarray) -> Tensor:
    """In units of the root mean square length of the pool's stimuli: designs are relative to it."""
    length = float(np.sqrt((np.asarray(pool, dtype=np.float64) ** 2).sum(axis=1).mean()))
    return torch.as_tensor(np.asarray(pool / max(length, 1e-30) * pool.shape[1] ** 0.5, dtype=np.float32))


# Embeddings, keys, what the memory leaves of them (b, n, d), its answers (b, d, d), state (b, d), legal (b, n).
_State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class _PointerNetwork(nn.Module):
    def __init__(self, n_features: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(n_features, width)
        self.hidden = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.pool = nn.Linear(width, width)
        self.keys = nn.Linear(n_features, width, bias=False)
        self.start, self.cell = nn.Linear(width, width), nn.GRUCell(width, width)
        self.rate = nn.Parameter(torch.zeros(()))
        self.w1, self.w2, self.w3 = (nn.Linear(width, width, bias=n == 0) for n in range(3))
        self.v = nn.Linear(width, 1, bias=False)

    def begin(self, values: Tensor, mask: Tensor) -> _State:
        e = self.embed(values)
        e = e + self.hidden(e)
        there = mask[..., None].to(e.dtype)
        mean = (e * there).sum(1) / there.sum(1)
        e = e + self.pool(mean)[:, None]
        keys = self.keys(values)
        memory = keys.new_zeros(len(keys), keys.shape[2], keys.shape[2])
        return e, keys, keys, memory, torch.tanh(self.start(mean)), mask

    def point(self, state: _State) -> Tensor:
        """Logits (b, n), -inf where there is nothing to choose."""
        e, keys, left, _, h, mask = state
        found = self.v(torch.tanh(self.w1(e) + self.w2(h)[:, None] + self.w3(keys * left)))[..., 0]
        return found.masked_fill(~mask, -torch.inf)

    def step(self, state: _State, row: Tensor) -> _State:
        """After stimuli ``row`` (b,) were chosen."""
        e, keys, left, memory, h, mask = state
        at = torch.arange(len(row), device=row.device)
        unit = F.normalize(keys[at, row], dim=-1)
        new = torch.sigmoid(self.rate) * (unit - torch.einsum("bij,bj->bi", memory, unit))
        left = left - (keys @ unit[..., None]) * new[:, None]
        memory = memory + new[:, :, None] * unit[:, None]
        mask = mask.scatter(1, row[:, None], False)
        return e, keys, left, memory, self.cell(e[at, row], h), mask

    def forward(self, values: Tensor, mask: Tensor, chosen: Tensor) -> Tensor:
        """Logits (b, k, n) of each choice, those before being given."""
        state, found = self.begin(values, mask), []
        for row in chosen.T:
            found.append(self.point(state))
            state = self.step(state, row)
        return torch.stack(found, 1)
