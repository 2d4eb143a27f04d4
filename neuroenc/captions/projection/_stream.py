"""Passes over an image bank: folds, states, hash, what reads along, and partitions on Dask workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.memory import parse_memory
from neuroenc._core.optional import require
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.topk import plan_blocks
from neuroenc.captions._linear import check_space
from neuroenc.captions.projection._state import ProjectionState
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
    """How rows are weighed and where that is computed; the settings of a state."""

    temperature: float
    decouple: bool
    dtype: str | None
    device: str | None

    def bytes_per_voxel(self, width: int, folds: int) -> int:
        """Weights in two precisions, and the sums of each fold."""
        return 8 * (2 * width + folds * (width + 16))


class Scan(NamedTuple):
    """What a pass (or a part of one) found: a state a fold, ids, the hash."""

    states: list[ProjectionState]
    ids: IdCollector
    digest: BankHash

    @classmethod
    def begin(cls, unit: np.ndarray, plan: Plan, folds: np.ndarray | None) -> Scan:
        """No rows yet, for unit-norm weights (v, d)."""
        state, n_folds = ProjectionState(unit, *plan), 1 if folds is None else len(folds)
        return cls([state, *(state.fresh() for _ in range(n_folds - 1))], IdCollector(), BankHash())

    def blocks(self, folds: np.ndarray | None, budget: int) -> tuple[int, int]:
        """Rows of a chunk and voxels of a block whose temporaries stay within ``budget`` bytes."""
        v, d = self.states[0].weights.shape
        # Where folds share out the rows, a fold's share of a chunk should still make a large matrix product.
        wanted = 4096 if folds is None else int(min(4096 * len(folds), 4096 / max(folds.mean(), 1 / len(folds))))
        return plan_blocks(budget, d, v, self.states[0].dtype.itemsize, rows=wanted)

    def update(self, chunk: Chunk, masks: np.ndarray | None, block: int) -> None:
        """Take rows in; ``masks`` (fold, m) say which of them are in each fold."""
        for n, mine in enumerate(self.states):
            rest = chunk if masks is None else chunk.take(masks[n])
            if len(rest.rows):
                mine.update(rest, block)
                self.ids(chunk, mine.nearest)

    def merge(self, other: Scan) -> Scan:
        """Both parts' rows together."""
        states = [a.merge(b) for a, b in zip(self.states, other.states, strict=True)]
        ids, digest = IdCollector(), BankHash()
        for part in (self, other):
            ids.merge(part.ids)
            digest.merge(part.digest)
        return Scan(states, ids, digest)


class Reader(Protocol):
    """What is found of a bank while it is read, for things ``a:b`` of ``n`` at a time where memory is short.

    ``cost`` is the bytes for each of the ``n`` while the bank is read, ``width`` that which embeddings must have.
    """

    @property
    def n(self) -> int: ...
    @property
    def cost(self) -> int: ...
    @property
    def width(self) -> int | None: ...

    def open(self, a: int, b: int, budget: int, width: int) -> int:
        """Begin; the largest chunk (rows) that is welcome."""

    def update(self, chunk: Chunk) -> None:
        """Take rows in."""

    def close(self) -> None:
        """End."""


class Projections:
    """Weights of several jobs under one plan on the same images, or folds of them: one state, one set of products.

    Parameters
    ----------
    folds : bool array (fold, n) or None
    """

    def __init__(self, plan: Plan, folds: np.ndarray | None, bank: EmbeddingBank) -> None:
        self.plan, self.folds, self.bank = plan, folds, bank
        self.jobs: list[Any] = []
        self._parts: list[list[dict[str, np.ndarray]]] = [[] for _ in range(1 if folds is None else len(folds))]
        self._info: list[dict[str, Any]] = []

    def add(self, job: Any) -> int:
        """Take in the weights of a job; its number."""
        check_space(job.weights.coef, self.bank)
        self.jobs.append(job)
        return len(self.jobs) - 1

    @property
    def n(self) -> int:
        return sum(len(job.unit) for job in self.jobs)

    @property
    def width(self) -> int:
        return int(self.jobs[0].unit.shape[1])

    @property
    def cost(self) -> int:
        return self.plan.bytes_per_voxel(self.width, len(self._parts))

    def _unit(self, a: int, b: int) -> np.ndarray:
        return np.concatenate([job.unit for job in self.jobs])[a:b]

    def open(self, a: int, b: int, budget: int, width: int) -> int:
        self._scan = Scan.begin(self._unit(a, b), self.plan, self.folds)
        rows, self._block = self._scan.blocks(self.folds, budget // 2)
        return rows

    def update(self, chunk: Chunk) -> None:
        masks = None if self.folds is None else self.folds[:, chunk.start : chunk.start + len(chunk.rows)]
        self._scan.update(chunk, masks, self._block)

    def by_dask(self, a: int, b: int, budget: int, client: Any, hashed: bool) -> str:
        """As reading the bank, but by tasks of dask, which computes its arrays where it sees fit; the bank's hash."""
        self._scan = scan_dask(
            self._unit(a, b), self.plan, self.bank, self.folds, budget // 2, client=client, hashed=hashed
        )
        digest = self._scan.digest.hexdigest()
        self.close()
        return digest

    def close(self) -> None:
        states, ids = self._scan.states, self._scan.ids
        for mine, state in zip(self._parts, states, strict=True):
            mine.append({**state.finish(), "nearest_image": ids.names(state.nearest)})
        self._info = [state.info() for state in states]
        del self._scan

    def dataset(self, number: int, digest: str, fold: int = 0) -> xr.Dataset:
        """The projection of one job (in one fold)."""
        job, parts = self.jobs[number], self._parts[fold]
        start = sum(len(other.unit) for other in self.jobs[:number])
        mine = slice(start, start + len(job.unit))
        found = {name: np.concatenate([p[name] for p in parts])[mine] for name in parts[0]}
        projection: xr.Dataset = job.dataset(found, {**self._info[fold], "bank_hash": digest}, self.plan)
        return projection


def read_bank(
    bank: EmbeddingBank,
    readers: Sequence[Reader],
    max_memory: str | int | None,
    *,
    client: Any = None,
    desc: str = "bank",
    show: bool = False,
) -> tuple[str, int]:
    """Hand all rows of a bank to ``readers``, again only for as many voxels as do not fit half of ``max_memory``.

    Returns
    -------
    str, int
        The bank's hash ("" where nothing is projected), and how often it was read.
    """
    budget = parse_memory(max_memory)
    passes = _passes(readers, budget // 2)
    if len(passes) > 1 and not bank.reusable:
        need = 2 * sum(r.n * r.cost for r in readers)
        raise DataError(
            f"{need:,} bytes of max_memory are needed to read a stream once; it is {budget:,}. Next step: raise "
            "max_memory, or pass a bank that can be read again (memmap, list)."
        )
    # The bank is checked against the width of the weights, where there are any.
    width = next((r.width for r in readers if r.width), None) or bank.width or 512
    digest, n_passes, parallel = "", 0, client is not None or is_lazy(bank)
    total = None if bank.n is None else bank.n * len(passes)
    with progress_bar(desc=desc, total=total, show=show, unit="image") as bar:
        for several in passes:
            chunked = []
            for reader, a, b in several:
                if not (parallel and isinstance(reader, Projections)):
                    chunked.append((reader, reader.open(a, b, budget, width)))
                    continue
                found = reader.by_dask(a, b, budget, client, hashed=not digest)
                digest, n_passes = digest or found, n_passes + 1
                bar.update(bank.n or 0)
            if not chunked:
                continue
            hashed = BankHash() if not digest and any(isinstance(r, Projections) for r, _ in chunked) else None
            for chunk in bank.chunks(min(rows for _, rows in chunked), width):
                for reader, _ in chunked:
                    reader.update(chunk)
                if hashed is not None:
                    hashed.update(chunk)
                bar.update(len(chunk.rows))
            digest, n_passes = digest if hashed is None else hashed.hexdigest(), n_passes + 1
            for reader, _ in chunked:
                reader.close()
    return digest, n_passes


def _passes(readers: Sequence[Reader], capacity: int) -> list[list[tuple[Reader, int, int]]]:
    """Readers, or parts of them, by the reading of the bank in which they fit ``capacity`` bytes."""
    out: list[list[tuple[Reader, int, int]]] = [[]]
    left = capacity
    for reader in readers:
        done = 0
        while True:
            fit = reader.n - done if not reader.cost else left // reader.cost
            if fit < 1 and reader.n and out[-1]:
                out.append([])
                left = capacity
                continue
            n = min(max(1, fit), reader.n - done)
            out[-1].append((reader, done, done + n))
            done, left = done + n, left - n * reader.cost
            if done >= reader.n:
                break
    return [several for several in out if several]


def is_lazy(bank: EmbeddingBank) -> bool:
    """Whether a bank has dask arrays, which are computed where dask sees fit."""
    return bank.reusable and any(_blocks(x.array) is not None for x in bank.shards())


def _blocks(array: Any) -> Any:
    data = array.data if isinstance(array, xr.DataArray) else array
    return data if hasattr(data, "dask") else None


def _scan_part(
    unit: np.ndarray, plan: Plan, source: Any, ids: Any, folds: Any, budget: int, *, first: int, hashed: bool
) -> Scan:
    """Scan of a part of a bank that begins at row ``first`` of the whole; ``folds`` are of the part."""
    # Tasks run side by side, each with its own products.
    with threadpool_limits(1, user_api="blas"):
        bank = source if isinstance(source, EmbeddingBank) else as_bank(source, ids)
        found = Scan.begin(unit, plan, folds)
        rows, block = found.blocks(folds, budget)
        for chunk in bank.chunks(rows, unit.shape[1]):
            masks = None if folds is None else folds[:, chunk.start : chunk.start + len(chunk.rows)]
            moved = chunk._replace(start=chunk.start + first)
            found.update(moved, masks, block)
            if hashed:
                found.digest.update(moved)
        return found


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
    """Scan of a bank by a task for each part of it; with ``client`` on its workers, which see the bank's files.

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
