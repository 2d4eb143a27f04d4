"""One pass over an image bank: folds, states, hash, and partitions on Dask workers."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.optional import require
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.topk import plan_blocks
from neuroenc.captions.projection._state import ProjectionState, TruncatedState
from neuroenc.retrieval import Chunk, EmbeddingBank, as_bank


def bank_folds(n: int, folds: int = 5, *, size: int | None = None, kind: str = "disjoint", seed: int = 0) -> np.ndarray:
    """Sample folds of a bank without replacement, as masks.

    Pools of images that are sampled in different ways stand beside each other along the bank: masks of pools
    are joined with ``numpy.concatenate(..., axis=1)``. The released folds take a disjoint fifth of one pool and, anew
    for each fold, a part of two others.

    Parameters
    ----------
    n : int
        Images of the pool.
    folds : int
    size : int, optional
        Images a fold; by default ``n // folds`` (the remainder goes to the first folds).
    kind : "disjoint" or "resampled"
        "disjoint": no image is in two folds. "resampled": each fold draws anew, so folds overlap.
    seed : int

    Returns
    -------
    ndarray (folds, n) of bool

    Raises
    ------
    ConfigError
        A fold would be empty, or folds of that size do not fit.

    Examples
    --------
    >>> bank_folds(5, 2).sum(axis=1).tolist(), bool(bank_folds(5, 2).all(axis=0).any())
    ([3, 2], False)
    >>> pools = [bank_folds(8, 2, size=4, kind="resampled"), bank_folds(100, 2)]
    >>> np.concatenate(pools, axis=1).sum(axis=1).tolist()
    [54, 54]
    """
    one_of("kind of folds", kind, ("disjoint", "resampled"))
    if check_whole("folds", folds) > n and size is None:
        raise ConfigError(f"folds={folds!r} of {n} images is not legal; it must be from 1 to the number of images.")
    most = n // folds if kind == "disjoint" else n
    if size is not None and not 1 <= size <= most:
        raise ConfigError(f"{folds} {kind} folds of size={size} from {n} images; legal sizes are 1 to {most}.")
    rng = make_rng(seed)
    out = np.zeros((folds, n), dtype=bool)
    if kind == "disjoint":
        parts = np.array_split(rng.permutation(n), folds)
        for mask, rows in zip(out, parts, strict=True):
            mask[rows[:size]] = True
    else:
        for mask in out:
            mask[rng.choice(n, n // folds if size is None else size, replace=False, shuffle=False)] = True
    return out


def as_folds(folds: Any, n: int | None, seed: int) -> np.ndarray:
    """Masks (fold, n) from a number of folds or from masks, checked against the bank."""
    if n is None:
        raise DataError("folds of a stream whose length is not known. Next step: pass a list, a memmap or a path.")
    if isinstance(folds, (int, np.integer)) and not isinstance(folds, bool):
        return bank_folds(n, int(folds), seed=seed)
    masks = np.asarray(folds)
    if masks.dtype != bool or masks.ndim != 2 or masks.shape[1] != n or len(masks) == 0:
        raise DataError(
            f"folds have dtype {masks.dtype} and shape {masks.shape}; legal: a number, or bool (folds, {n}) as of "
            "bank_folds()."
        )
    empty = np.flatnonzero(~masks.any(axis=1))
    if len(empty):
        raise DataError(f"{len(empty)} of {len(masks)} folds have no image; the first is fold {empty[0]}.")
    return masks


State = ProjectionState | TruncatedState


class IdCollector:
    """Ids of the rows that were best at some time, so that a stream's ids need not be kept."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def __call__(self, chunk: Chunk, positions: np.ndarray) -> None:
        if chunk.ids is None:
            return
        new = np.unique(positions[positions >= chunk.start])
        self._names.update(zip(new.tolist(), chunk.names(new).tolist()))

    def merge(self, other: IdCollector) -> None:
        """Take the other's names in."""
        self._names.update(other._names)

    def names(self, positions: np.ndarray) -> np.ndarray:
        flat = [self._names.get(x, str(x)) for x in np.asarray(positions).ravel().tolist()]
        return np.array(flat, dtype=str).reshape(np.shape(positions))


class BankHash:
    """Content hash of a bank (values, width, ids, order) that does not depend on how it was cut.

    The sum, modulo 2**64 in four places, of SHA-256 of every row with its position and id: parts add up.
    """

    def __init__(self) -> None:
        self._sum, self._kinds = np.zeros(4, np.uint64), set[str]()

    def update(self, chunk: Chunk) -> None:
        rows = np.ascontiguousarray(chunk.rows).view(np.ndarray)
        if rows.shape[0] == 0:
            return
        width = rows.shape[1] * rows.itemsize
        # One call a row: places, ids and values are put side by side first.
        data = np.empty((len(rows), 8 + width), np.uint8)
        data[:, :8] = np.arange(chunk.start, chunk.start + len(rows), dtype="<i8")[:, None].view(np.uint8)
        data[:, 8:] = rows.view(np.uint8).reshape(len(rows), width)
        flat, step, make = data.data.cast("B"), 8 + width, hashlib.sha256
        self._kinds.add(f"{rows.dtype.str}:{rows.shape[1]}")
        if chunk.ids is None:
            found = [make(flat[n : n + step]).digest() for n in range(0, flat.nbytes, step)]
        else:
            names = [f"\0{x}".encode() for x in chunk.ids.tolist()]
            found = [make(b"".join((flat[n * step : (n + 1) * step], x))).digest() for n, x in enumerate(names)]
        self._sum += np.frombuffer(b"".join(found), np.uint64).reshape(-1, 4).sum(axis=0, dtype=np.uint64)

    def merge(self, other: BankHash) -> None:
        """Take the rows of another part in."""
        self._sum += other._sum
        self._kinds |= other._kinds

    def hexdigest(self) -> str:
        kinds = ";".join(sorted(self._kinds)).encode()
        return hashlib.sha256(kinds + self._sum.astype("<u8").tobytes()).hexdigest()


def bank_hash(bank: EmbeddingBank, rows: int = 16384) -> str:
    """SHA-256 of a bank's embeddings and ids, whatever the shards that it lies in.

    >>> from neuroenc.retrieval import as_bank
    >>> bank_hash(as_bank(np.eye(3))) == bank_hash(as_bank([np.eye(3)[:2], np.eye(3)[2:]]))
    True
    """
    found, first = BankHash(), 0
    for array, ids, n, _ in bank.shards():
        for a in range(0, n, rows):
            b = min(a + rows, n)
            found.update(Chunk(first + a, np.asarray(array[a:b]), None if ids is None else ids[a:b]))
        first += n
    return found.hexdigest()


class Plan(NamedTuple):
    """How rows are weighed and where that is computed."""

    temperature: float
    decouple: bool
    dtype: str | None
    device: str | None
    top_k: int | None
    weighting: str

    def state(self, unit: np.ndarray) -> State:
        """A state without rows for unit-norm weights (v, d)."""
        if self.top_k is None:
            if self.weighting != "softmax":
                raise ConfigError(
                    f"weighting={self.weighting!r} is of the nearest images. Next step: give their number, top_k=."
                )
            return ProjectionState(unit, self.temperature, self.decouple, self.dtype, self.device)
        return TruncatedState(
            unit, self.top_k, self.temperature, self.decouple, self.dtype, self.device, self.weighting
        )

    def bytes_per_voxel(self, width: int, folds: int) -> int:
        """Weights in two precisions, and the sums of each fold (or its list, and the average at the end)."""
        if self.top_k is None:
            return 8 * (2 * width + folds * (width + 16))
        return 8 * (3 * width + folds * (3 * self.top_k + 16) + 6 * self.top_k)


class Scan(NamedTuple):
    """What a pass (or a part of one) found: a state a fold, ids, the hash."""

    states: list[State]
    ids: IdCollector
    digest: BankHash

    def merge(self, other: Scan) -> Scan:
        """Both parts' rows together."""
        states = [a.merge(b) for a, b in zip(self.states, other.states, strict=True)]  # type: ignore[arg-type]
        ids, digest = IdCollector(), BankHash()
        for part in (self, other):
            ids.merge(part.ids)
            digest.merge(part.digest)
        return Scan(states, ids, digest)


def scan(
    unit: np.ndarray,
    plan: Plan,
    bank: EmbeddingBank,
    folds: np.ndarray | None,
    budget: int,
    *,
    first: int = 0,
    hashed: bool = True,
    bar: Any = None,
) -> Scan:
    """Stream a bank, whose first row is row ``first`` of the whole, through one state a fold."""
    n_folds = 1 if folds is None else len(folds)
    state = plan.state(unit)
    states = [state, *(state.fresh() for _ in range(n_folds - 1))]
    out = Scan(states, IdCollector(), BankHash())
    # Where folds share out the rows, a fold's share of a chunk should still make a large matrix product.
    wanted = 4096 if folds is None else int(min(4096 * n_folds, 4096 / max(folds.mean(), 1 / n_folds)))
    rows, block = plan_blocks(budget, unit.shape[1], len(unit), state.dtype.itemsize, rows=wanted)
    for chunk in bank.chunks(rows, unit.shape[1]):
        chunk = chunk._replace(start=chunk.start + first)
        start = chunk.start - first
        for n, mine in enumerate(states):
            rest = chunk if folds is None else chunk.take(folds[n, start : start + len(chunk.rows)])
            if len(rest.rows):
                mine.update(rest, block)
                out.ids(chunk, mine.nearest)
        if hashed:
            out.digest.update(chunk)
        if bar is not None:
            bar.update(len(chunk.rows))
    return out


def _groups(n: int, per_voxel: int, budget: int, reusable: bool) -> list[np.ndarray]:
    """Voxels of each pass over the bank: their sums must fit half the budget."""
    fit = max(1, budget // 2 // per_voxel)
    passes = max(1, -(-n // fit))
    if passes > 1 and not reusable:
        raise DataError(
            f"{n} voxels need max_memory of {2 * n * per_voxel:,} bytes to read a stream once; it is {budget:,}. "
            "Next step: raise max_memory, or pass a bank that can be read again (memmap, list)."
        )
    return np.array_split(np.arange(n), passes)


def stream(
    unit: np.ndarray,
    bank: EmbeddingBank,
    plan: Plan,
    budget: int,
    *,
    folds: np.ndarray | None = None,
    client: Any = None,
    show: bool = True,
) -> list[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Averages of all voxels for each fold, with what is known of the bank; blocks of voxels where memory is short."""

    n_folds = 1 if folds is None else len(folds)
    if plan.top_k is not None:
        bank.again("top_k reads the nearest images again")
    groups = _groups(len(unit), plan.bytes_per_voxel(unit.shape[1], n_folds), budget, bank.reusable)
    parallel = client is not None or is_lazy(bank)
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in range(n_folds)]
    info: list[dict[str, Any]] = []
    digest = ""
    total = None if bank.n is None else bank.n * len(groups)
    with progress_bar(desc="project", total=total, show=show, unit="image") as bar:
        for group in groups:
            hashed = not digest
            if parallel:
                found = scan_dask(unit[group], plan, bank, folds, budget // 2, client=client, hashed=hashed)
                bar.update(bank.n or 0)
            else:
                found = scan(unit[group], plan, bank, folds, budget // 2, hashed=hashed, bar=bar)
            digest = digest or found.digest.hexdigest()
            for mine, state in zip(parts, found.states, strict=True):
                mine.append({**state.finish(bank), "nearest_image": found.ids.names(state.nearest)})
            info = [state.info() for state in found.states]
    merged = [{name: np.concatenate([p[name] for p in mine]) for name in mine[0]} for mine in parts]
    return [(a, {**b, "bank_hash": digest}) for a, b in zip(merged, info, strict=True)]


def is_lazy(bank: EmbeddingBank) -> bool:
    """Whether a bank has dask arrays, which are computed where dask sees fit."""
    return bank.reusable and any(_blocks(x.array) is not None for x in bank.shards())


def _blocks(array: Any) -> Any:
    data = array.data if isinstance(array, xr.DataArray) else array
    return data if hasattr(data, "dask") else None


def _scan_part(unit: np.ndarray, plan: Plan, source: Any, ids: Any, folds: Any, budget: int, **kwargs: Any) -> Scan:
    # Tasks run side by side, each with its own products.
    with threadpool_limits(1, user_api="blas"):
        bank = source if isinstance(source, EmbeddingBank) else as_bank(source, ids)
        return scan(unit, plan, bank, folds, budget, **kwargs)


def _pieces(bank: EmbeddingBank, rows: int) -> list[tuple[int, int, Any, Any]]:
    """(start, stop, rows, ids): dask's own chunks of dask arrays, else parts of at most ``rows``."""
    found: list[tuple[int, int, Any, Any]] = []
    for first, shard in zip(bank.edges(), bank.shards()):
        lazy = _blocks(shard.array)
        if lazy is None:
            for a in range(0, shard.n, rows):
                b = min(a + rows, shard.n)
                found.append((first + a, first + b, bank.part(first + a, first + b), None))
            continue
        whole = lazy.rechunk({1: -1})
        a = 0
        for length, block in zip(whole.chunks[0], whole.to_delayed()[:, 0]):
            ids = None if shard.ids is None else shard.ids[a : a + length]
            if length:
                found.append((first + a, first + a + length, block, ids))
            a += length
    return found


def scan_dask(
    unit: np.ndarray,
    plan: Plan,
    bank: EmbeddingBank,
    folds: np.ndarray | None,
    budget: int,
    *,
    client: Any = None,
    hashed: bool = True,
) -> Scan:
    """As :func:`scan`, a task for each part of the bank; with ``client`` on its workers, which see the bank's files.

    Nothing is approximate: merged states are those of one pass, up to the order of float64 additions.
    """
    require("dask", "big")
    from dask.base import compute
    from dask.delayed import delayed

    bank.again("workers read parts of the bank")
    if client is not None and not hasattr(client, "nthreads"):
        raise ConfigError(f"client is {type(client).__name__}; legal is a dask.distributed.Client.")
    n = int(bank.n or 0)
    threads = 1 if client is None else max(1, sum(client.nthreads().values()))
    # About four tasks a thread: enough to share out, and few states to merge.
    rows = max(1024, -(-n // (4 * threads)))
    weights = client.scatter(unit, broadcast=True) if client is not None else delayed(unit, traverse=False)
    work, join = delayed(_scan_part, pure=False), delayed(Scan.merge, pure=False)
    tasks = [
        work(weights, plan, source, ids, None if folds is None else folds[:, a:b], budget, first=a, hashed=hashed)
        for a, b, source, ids in _pieces(bank, rows)
    ]
    while len(tasks) > 1:
        pairs = [join(*tasks[n : n + 2]) for n in range(0, len(tasks) - 1, 2)]
        tasks = pairs + tasks[len(tasks) - len(tasks) % 2 :]
    found: Scan = client.compute(tasks[0]).result() if client is not None else compute(tasks[0])[0]
    return found
