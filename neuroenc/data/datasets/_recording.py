"""One subject's rows before any value is read, and the one loader that collects them session by session."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.cache import trim_cache
from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import plain_json, read_npy, sha256_file, storage_errors
from neuroenc._core.memory import parse_memory
from neuroenc._core.optional import require
from neuroenc._core.paths import cache_dir
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.store import Blocks, Store, content_key
from neuroenc.data._build import make_responses, provenance_step
from neuroenc.data._images import binary_mask, check_affine, forward, open_mask
from neuroenc.data._preprocess import average_repeats, averaged, zscore_in_place
from neuroenc.data._stimuli import EncodingData, Stimuli

#: Changes when the stored values would.
_FORMAT = 4
#: Of a block that is read at once from what is kept.
_CHUNK_BYTES = 2**21


@dataclass
class Recording:
    """One subject's rows and voxels with all labels, and the function that reads their values.

    Attributes
    ----------
    labels : dict
        Arguments of `neuroenc.data.make_responses`: ``stimulus`` (row,) and ``voxel`` (voxel,) at least.
    read : (slice of rows, slice of voxels, bytes) -> array (row, voxel)
        Values of rows of one session (or run); besides them about that many bytes may be held.
    stimuli : Stimuli
    files : sequence of path
        What the values are read from; a change of them is noticed in the store.
    settings : dict
        Settings on which the values depend (``provenance`` of the responses).
    splits : names
        Values of the stimuli's column ``split`` whose ids go to ``extra["splits"]``.
    extra : dict
    by : {"session", "run"}
        Within what rows are read and z-scored; rows stand in its order.
    keep : bool
        Store values on disk even where memory holds them, because reading them takes long.
    telling : str
        What would tell sessions where rows have none, so that they cannot be z-scored.
    """

    labels: dict[str, Any]
    read: Callable[[slice, slice, int], np.ndarray]
    stimuli: Stimuli
    files: Sequence[Path] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    splits: Sequence[str] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    by: str = "session"
    keep: bool = False
    telling: str = ""


def collect(
    found: Recording,
    *,
    zscore: bool = True,
    repeats: str = "keep",
    cache: Any = True,
    max_memory: Any = None,
    progress: bool = True,
) -> EncodingData:
    """Responses of all sessions under their labels: in memory where half of ``max_memory`` holds them.

    Parameters
    ----------
    found : Recording
    zscore : bool
        Every voxel within every session, population standard deviation; constant voxels become 0.
    repeats : {"keep", "average"}
    cache : bool or path
        Where larger responses are kept (in the store, session by session); False refuses them.
    max_memory : int or str, optional
    progress : bool
    """
    one_of("value of repeats:", repeats, ("keep", "average"))
    by, labels = found.by, found.labels
    n, n_voxels = len(labels["stimulus"]), len(labels["voxel"])
    # One number seen as a whole array: labels are checked before anything large exists.
    empty = np.broadcast_to(np.zeros((), dtype=np.float32), (n, n_voxels))
    template = make_responses(empty, **{"provenance": found.settings, **labels})
    source = template.attrs["source"]
    # Labels are held beside the blocks; a part of the budget is always left to these.
    whole = parse_memory(max_memory)
    budget = max(whole // 4, whole - 3 * sum(c.nbytes for c in template.coords.values()))
    bounds = _bounds(template, by)
    if zscore:
        if found.telling and "session" not in template.coords:
            raise DataError(
                f"the sessions of these {n} trials are unknown, so they cannot be z-scored within them. Next step:"
                f" {found.telling}, or zscore=False."
            )
        small = [last - first for first, last in bounds if last - first < 2]
        if small:
            raise DataError(
                f"{len(small)} of {len(bounds)} {by}s have one trial; z-scores need two. Next step: zscore=False."
            )
        template.attrs.update(units="z", zscored=by, zscored_n=n)
        template.attrs["provenance"] = provenance_step(template.attrs, "zscore", by=by, ddof=0)
    constant = np.zeros((len(bounds), n_voxels), dtype=bool)

    def values_of(number: int, block: slice) -> np.ndarray:
        values = np.ascontiguousarray(found.read(slice(*bounds[number]), block, budget // 8), dtype=np.float32)
        if zscore:
            # What a reader keeps must not be changed.
            values = values if values.base is None else values.copy()
            constant[number, block] = zscore_in_place(values, budget // 16)
        return values

    longest = max((last - first for first, last in bounds), default=1)
    chunk = int(np.clip(min(_CHUNK_BYTES, budget // 32) // max(1, 4 * longest), 1, max(1, n_voxels)))
    # An eighth of the budget for a block of one session, which is held twice while it is stored.
    width = max(chunk, budget // 8 // (4 * longest) // chunk * chunk)
    blocks = [slice(s, min(s + width, n_voxels)) for s in range(0, n_voxels, width)]
    needed = n * n_voxels * 4 * (2 if repeats == "average" else 1)
    fits = needed <= budget // 2
    with progress_bar(desc=f"{source} {by}s", total=len(bounds) * len(blocks), show=progress) as bar:
        if fits and (cache is False or not found.keep):
            data = np.empty((n, n_voxels), dtype=np.float32)
            for number, (first, last) in enumerate(bounds):
                for block in blocks:
                    data[first:last, block] = values_of(number, block)
                    bar.update(1)
            responses = template.copy(deep=False, data=data)
            responses = average_repeats(responses) if repeats == "average" else responses
        elif cache is False:
            raise DataError(
                f"{n} trials of {n_voxels} voxels need {needed:,} bytes, more than half of max_memory ({budget:,})."
                " Next step: cache=True streams them through the disk; or ask for fewer voxels."
            )
        else:
            # Voxels are told by their numbers, however they were asked for.
            kept = {k: v for k, v in found.settings.items() if k != "voxels"}
            rows = [template["voxel"].values, template["stimulus"].values]
            key = content_key(_FORMAT, plain_json(kept), rows, list(map(sha256_file, found.files)), zscore, by)
            store = Store(cache_dir() / "responses" if cache is True else Path(cache).expanduser(), mapped=True)
            what = f"{source.split()[0]} {labels.get('subject') or ''}".strip()

            def session(number: int) -> np.ndarray:
                """Values (voxel, row) of one session, from the disk."""

                def pieces() -> Iterator[np.ndarray]:
                    for block in blocks:
                        yield values_of(number, block).T
                        bar.update(1)

                def pack() -> dict[str, Any]:
                    about = {"what": f"{what}, {by} {number + 1} of {len(bounds)}, {n_voxels} voxels"}
                    return {"values": Blocks(n_voxels, pieces()), "constant": constant[number], "about": about}

                parts = store.keep("responses", [key, number], pack)
                constant[number] = parts["constant"]
                bar.update(max(0, (number + 1) * len(blocks) - bar.n))
                return parts["values"]

            sessions = [session(number) for number in range(len(bounds))]
            if repeats == "keep":
                responses = _labelled(sessions, template, chunk, budget)
            else:
                responses = _averaged(sessions, template, store, [key, "average"], what, chunk, budget)
            if cache is True:
                trim_cache()
    if constant.any():
        some, every = int(constant.any(axis=0).sum()), int(constant.all(axis=0).sum())
        warnings.warn(
            f"{some} of {n_voxels} voxels of {labels.get('subject') or source} are constant within"
            f" at least one {by} ({every} in all of them); they are 0 there.",
            stacklevel=3,
        )
    extra = dict(found.extra)
    if found.splits:
        split = found.stimuli.table["split"]
        extra["splits"] = {s: split.index[split == s].to_numpy(dtype=str) for s in found.splits}
    return EncodingData(responses, found.stimuli, extra=extra)


def _bounds(template: xr.DataArray, by: str) -> list[tuple[int, int]]:
    """First and last row of each session, or of each run of a session."""
    keys = [k for k in ("session", "run")[: 1 + (by == "run")] if k in template.coords]
    n = template.shape[0]
    edges = np.unique([0, *(e + 1 for k in keys for e in np.flatnonzero(np.diff(template[k].values))), n]).tolist()
    return list(pairwise(edges))


def _labelled(parts: list[np.ndarray], template: xr.DataArray, chunk: int, budget: int) -> xr.DataArray:
    """Kept arrays (voxel, row), rows after rows, as the template's values: in memory if half the budget holds them."""
    if template.size * 4 <= budget // 2:
        return template.copy(deep=False, data=np.concatenate([part.T for part in parts]))
    require("dask", "big")
    import dask.array

    def lazy(part: Any) -> Any:
        stored, shape = _Stored(str(part.filename), part.dtype, part.shape[::-1]), (part.shape[1], chunk)
        meta = np.empty((0, 0), dtype=part.dtype)
        return dask.array.from_array(stored, chunks=shape, name=f"responses-{stored.path}", meta=meta)

    return template.copy(deep=False, data=dask.array.concatenate([lazy(part) for part in parts]))


@dataclass(frozen=True)
class _Stored:
    """Array (row, voxel) whose blocks are read from a kept array (voxel, row) wherever they are needed."""

    path: str
    dtype: np.dtype
    shape: tuple[int, ...]
    ndim: int = 2

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.array(read_npy(self.path).T[key])


def _averaged(
    sessions: list[np.ndarray], template: xr.DataArray, store: Store, key: Any, what: str, chunk: int, budget: int
) -> xr.DataArray:
    """Means over repeats, kept too, block of voxels by block."""
    # Labels of the averaged form, from an array without voxels.
    labels = average_repeats(template[:, :0].copy(deep=False, data=np.zeros((template.shape[0], 0), dtype=np.float32)))
    numbers, _ = pd.factorize(template["stimulus"].values)
    counts, n_voxels = labels["n_repeats"].values, template.shape[1]
    coords = {k: v for k, v in labels.coords.items() if "voxel" not in v.dims}
    coords |= {k: v for k, v in template.coords.items() if v.dims == ("voxel",)}
    empty = np.broadcast_to(np.zeros((), dtype=np.float32), (len(counts), n_voxels))
    # All rows of a block, sorted and summed in float64.
    width = max(1, budget // max(1, 96 * len(numbers)))

    def pieces() -> Iterator[np.ndarray]:
        for start in range(0, n_voxels, width):
            rows = np.concatenate([values[start : start + width].T for values in sessions])
            yield averaged(rows, numbers, counts).T

    about = {"what": f"{what}, means over repeats of {len(counts)} stimuli, {n_voxels} voxels"}
    parts = store.keep("responses", key, lambda: {"values": Blocks(n_voxels, pieces()), "about": about})
    means = xr.DataArray(empty, dims=labels.dims, coords=coords, attrs=labels.attrs, name=labels.name)
    return _labelled([parts["values"]], means, chunk, budget)


def select_voxels(
    voxels: Any,
    regions: Mapping[str, np.ndarray],
    what: str,
    *,
    everything: str = "all",
    spelling: Iterable[str] = ("{}",),
    shape: Sequence[int] | None = None,
    reference: Any = None,
) -> np.ndarray:
    """Flat bool mask of the voxels that an option asks for.

    Parameters
    ----------
    voxels : ``everything``, names of regions (their union), bool array, or NIfTI mask
    regions : name -> bool array (voxel,)
        Under ``everything`` those that it stands for.
    what : str
        The data set, for errors.
    spelling : patterns
        Names under which a region may stand: ``("{}", "LH{}", "RH{}")`` takes both sides of one without a side.
    shape : optional
        Of a bool array; the regions' own by default.
    reference : nibabel image or affine, optional
        Where a NIfTI mask has to lie; without it there are no places.

    Raises
    ------
    DataError
        A mask has another shape or place, or nothing is selected.
    """
    image = hasattr(voxels, "dataobj") or (isinstance(voxels, (str, os.PathLike)) and ".nii" in str(voxels))
    if isinstance(voxels, np.ndarray) or (image and reference is not None):
        keep = flat_mask(voxels, shape or regions[everything].shape, what, reference)
    else:
        chosen: list[str] = []
        for name in [voxels] if isinstance(voxels, str) else list(voxels):
            own = [x for pattern in spelling if (x := pattern.format(name)) in regions]
            if not own:
                raise ConfigError(unknown_name(f"region of {what}", name, list(regions)))
            chosen += own
        keep = np.any([regions[n] for n in chosen], axis=0)
    if not keep.any():
        raise DataError(f"voxels={voxels!r} selects none of {keep.size} voxels of {what}.")
    return np.asarray(keep)


def flat_mask(voxels: Any, shape: Sequence[int], what: str, reference: Any = None) -> np.ndarray:
    """A NIfTI mask that lies where ``reference`` does, or a bool array, of ``shape``: flat, in C order."""
    if hasattr(voxels, "dataobj") or isinstance(voxels, (str, os.PathLike)):
        image = open_mask(voxels, "voxels")
        if reference is not None:
            check_affine(image, reference, names=("voxels", what))
        voxels = binary_mask(image, "voxels")
    mask = np.asarray(voxels)
    if mask.dtype != bool or mask.shape != tuple(shape):
        raise DataError(f"voxels is {mask.dtype} of shape {mask.shape} (expected bool of shape {tuple(shape)}).")
    return mask.reshape(-1)


def sessions_of(there: Iterable[int], wanted: Any, what: str) -> list[int]:
    """Sessions that are asked for (default all that are there), ascending."""
    have = sorted({int(n) for n in there})
    numbers = have if wanted is None else sorted({int(n) for n in np.atleast_1d(np.asarray(wanted)).tolist()})
    if not numbers or set(numbers) - set(have):
        raise DataError(f"{what} has no sessions {sorted(set(numbers) - set(have))}; it has {have}.")
    return numbers


def within(folder: Path, pattern: str, depth: int = 4) -> list[Path]:
    """Paths that match up to ``depth`` folders down, sorted; a whole disk is not searched."""
    return sorted(p for n in range(depth + 1) for p in folder.glob("*/" * n + pattern))


def natural(path: Path) -> list[Any]:
    """Key that puts run 2 before run 10."""
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", path.as_posix())]


def frames(values: Any, voxel: np.ndarray, budget: int, convert: Callable[[np.ndarray], np.ndarray]) -> Iterator[Any]:
    """Rows (some frames, voxel) of an array (place..., frame) stored frame after frame; flat numbers in C order."""
    shape, n = tuple(int(x) for x in values.shape[:-1]), int(values.shape[-1])
    index = np.ravel_multi_index(np.unravel_index(voxel, shape), shape, order="F")
    # A frame is held as it is stored, scaled in float64, and as float32.
    step = max(1, budget // max(1, int(np.prod(shape)) * 8 + len(index) * 12))
    for start in range(0, n, step):
        block = np.asarray(values[..., start : start + step])
        yield np.ascontiguousarray(convert(block.reshape((-1, block.shape[-1]), order="F")[index]).T)


def unpacked(
    path: Path,
    voxel: np.ndarray,
    budget: int,
    convert: Callable[[np.ndarray], np.ndarray] = lambda block: block.astype(np.float32),
) -> np.ndarray:
    """Values (time, voxel) of a 4-D NIfTI, float32; on disk where a quarter of the budget does not hold them.

    A packed file is unpacked from its start for every part that is read; this unpacks it once.
    """
    # Outermost the errors of writing: a file that could not be written out fails once more when it is closed.
    with storage_errors(gettempdir()), TemporaryFile() as handle, forward(path, "data") as image:
        if len(image.shape) != 4:
            raise DataError(f"{path} has shape {tuple(image.shape)} (expected (x, y, z, time)).")
        shape = (int(image.shape[3]), len(voxel))
        found = frames(image.dataobj, voxel, budget, convert)
        if shape[0] * shape[1] * 4 <= budget // 4:
            return np.concatenate([*found, np.empty((0, len(voxel)), dtype=np.float32)])
        # Written, not mapped: a full disk is an error here, and a crash (SIGBUS) of a mapped array.
        with storage_errors(gettempdir()):
            for rows in found:
                handle.write(rows.data.cast("B"))
            handle.flush()
        return np.memmap(handle, dtype=np.float32, mode="r", shape=shape)
