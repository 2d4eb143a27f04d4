"""One call from the official folders of the Natural Scenes Dataset to labelled responses."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import hash_array, hash_json, storage_errors
from neuroenc._core.memory import parse_memory
from neuroenc._core.paths import cache_dir
from neuroenc._core.progress import progress as progress_bar
from neuroenc.data._images import binary_mask, check_affine, open_mask
from neuroenc.data._labels import provenance_step
from neuroenc.data._nsd._betas import Spool, n_trials, read_session, zscore_in_place
from neuroenc.data._nsd._design import (
    SPLITS,
    read_design,
    read_stimulus_table,
    session_counts,
    shared_ids,
    stimulus_name,
)
from neuroenc.data._nsd._layout import BETAS, Layout
from neuroenc.data._nsd._pictures import read_stimuli
from neuroenc.data._nsd._rois import Regions, food_path, joined_names
from neuroenc.data._nsd._store import averaged_store, load_store, session_store, stamp, voxels_per_chunk
from neuroenc.data._preprocess import average_repeats
from neuroenc.data._schema import EncodingData, make_responses

__all__ = ["LICENCE", "nsd"]

LICENCE = "NSD Terms and Conditions (data access agreement); not redistributable"
_REPEATS = ("keep", "average")
#: Changes when the stored values would.
_FORMAT = 2


def nsd(
    root: str | os.PathLike[str],
    subject: int | str,
    *,
    space: str = "func1pt8mm",
    betas: str = "b3",
    voxels: Any = "nsdgeneral",
    rois: bool | str | Sequence[str] = True,
    sessions: Sequence[int] | int | None = None,
    zscore: bool = True,
    repeats: str = "keep",
    file_format: str = "auto",
    captions: bool | str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = True,
    food: Any = None,
    cache: bool | str | os.PathLike[str] = True,
    max_memory: str | int | None = None,
    progress: bool = True,
) -> EncodingData:
    r"""Responses of one subject of the Natural Scenes Dataset, from its folders as they are downloaded.

    Beta :math:`b_{tv}` of trial t and voxel v (files of whole numbers are divided by 300) becomes

    .. math:: y_{tv} = (b_{tv} - m_{sv}) / d_{sv}

    with mean m and standard deviation d (divisor n) of the voxel within its session s. With ``repeats="average"`` the
    trials that show one picture are averaged after that. Only the voxels asked for are read; sessions go through a
    store on disk, so that no more than ``max_memory`` bytes are held, however many sessions and voxels there are.

    Parameters
    ----------
    root : path
        Folder that holds ``nsddata``, ``nsddata_betas`` and, for pictures, ``nsddata_stimuli``.
    subject : 1 to 8, or "subj01" to "subj08"
    space : {"func1pt8mm", "func1mm", "fsaverage", "nativesurface"}
    betas : {"b1", "b2", "b3"}
        ``betas_assumehrf``, ``betas_fithrf``, ``betas_fithrf_GLMdenoise_RR`` (these names are legal too).
    voxels : str, sequence of str, bool array, or NIfTI mask
        Names as in `nsd_mask` (their union), or a mask over the space: (x, y, z), or (vertex,) with the left
        hemisphere first. Voxels come in C order of the volume, and their ids are their numbers in it.
    rois : bool, "all" or sequence of str
        Names written to the coordinate ``roi``: all that the files give but the 180 parcels of HCP_MMP1, with
        these, a choice of `nsd_mask`'s names, or none.
    sessions : int or sequence of int, optional
        Session numbers from 1; default all that are there.
    zscore : bool
        False keeps percent signal change.
    repeats : {"keep", "average"}
        One row per trial, or per picture.
    file_format : {"auto", "hdf5", "nii.gz", "mgh", "mgz"}
        Which files of the betas to read; "auto" prefers HDF5, from which single voxels are read.
    captions : bool or path(s)
        COCO's ``captions_train2017.json`` and ``captions_val2017.json``; True looks in
        ``nsddata_stimuli/stimuli/nsd/annotations``.
    food : path or bool array, optional
        Mask of food voxels for the names "food", "visual" and "higher-visual"; the data set has none.
    cache : bool or path
        Folder of the stores; True is ``nsd`` in neuroenc's cache folder. The store's name holds a hash of the
        settings and of the files' sizes and times. False reads into memory.
    max_memory : int or str, optional
        Such as "2GB"; default a quarter of the machine's. Responses of more than half of it stay on disk (dask).
    progress : bool

    Returns
    -------
    EncodingData
        ``responses`` float32 (presentation, voxel) or (stimulus, voxel) with ``stimulus`` ("nsd02951": the data set's
        1-based 73k id), ``subject``, ``session``, ``run``, ``repeat`` (0-based, by the design), ``roi``, ``ncsnr`` and
        ``i, j, k`` or ``vertex, hemi``. ``stimuli``: pictures (read when looked at), captions, and a table with
        ``nsd_id`` (0-based), ``id_73k`` and ``id_10k`` (1-based), ``coco_id``, ``coco_split`` and one column for each
        split. ``extra``: ``splits`` (name -> ids), ``n_sessions``, ``missing_sessions``, ``notes``.

    Raises
    ------
    ConfigError
        An option is unknown; the message gives the nearest.
    DataError
        Files are absent, damaged, or do not belong together; or memory does not hold what ``cache=False`` asks for.

    Warns
    -----
    UserWarning
        Voxels are constant in a session (edges that moved out of the image): they are 0 there.

    References
    ----------
    Allen et al. (2022), A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial intelligence,
    Nature Neuroscience 25:116.

    Examples
    --------
    >>> import tempfile
    >>> from neuroenc.data.simulate import nsd_tree
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = nsd_tree(folder, n_subjects=1)
    ...     found = nsd(folder, 1, voxels="V1", repeats="average", cache=False, progress=False)
    >>> found.responses.dims, found.responses.attrs["zscored"], sorted(found.extra["splits"])
    (('stimulus', 'voxel'), 'session', ['all8', 'shared1000', 'special515'])
    """
    if repeats not in _REPEATS:
        raise ConfigError(unknown_name("value of repeats:", repeats, _REPEATS))
    layout = Layout.open(root, subject, space, betas)
    design = read_design(layout)
    ending, files = layout.sessions(file_format)
    numbers = _choose_sessions(layout, sorted(files), sessions, design.n_sessions)
    regions = Regions(layout, food)
    places = np.flatnonzero(_mask(layout, regions, voxels))
    if not places.size:
        raise DataError(f"voxels={voxels!r} selects none of {layout.n_places} places of {layout.name}.")
    trials = design.trials(layout.subject)
    trials = trials[trials["session"].isin(numbers)]
    for number in numbers:
        found = n_trials(files[number])
        if found != design.per_session:
            raise DataError(
                f"{files[number][0]} holds {found} trials, the design shows {design.per_session} in a session. Next"
                " step: download it again."
            )
    settings = {
        "data": "nsd",
        "subject": layout.name,
        "space": space,
        "betas": layout.betas,
        "sessions": numbers,
        "voxels": voxels if isinstance(voxels, (str, list, tuple)) else "mask",
        "zscore": zscore,
        "format": ending,
        "food": food_path(food),
    }
    budget = parse_memory(max_memory)
    template = _template(layout, regions, places, trials, rois, zscore, settings)
    responses = _values(
        layout, files, numbers, places, template, design.per_session, zscore, repeats, cache, settings, budget, progress
    )
    counts: dict[int, int] | None
    try:
        counts = session_counts(layout, design)
    except DataError:
        # A tree with some subjects only still has the shared pictures.
        counts = None
    shared = {s: shared_ids(design, s, counts) for s in SPLITS if counts or s == "shared1000"}
    info = read_stimulus_table(layout, design)
    stimuli = read_stimuli(layout, trials, info, shared, captions, LICENCE)
    extra = {
        "splits": {name: stimulus_name(rows) for name, rows in shared.items()},
        "n_sessions": counts,
        "missing_sessions": [n for n in range(1, max(numbers) + 1) if n not in numbers],
        "notes": regions.notes,
    }
    return EncodingData(responses, stimuli, extra=extra)


def _choose_sessions(layout: Layout, there: list[int], wanted: Sequence[int] | int | None, planned: int) -> list[int]:
    if wanted is None:
        gaps = sorted(set(range(1, max(there) + 1)) - set(there))
        if gaps:
            warnings.warn(
                f"{layout.name} has sessions {there[0]} to {there[-1]} without {gaps}; rows keep their numbers.",
                stacklevel=3,
            )
        numbers = there
    else:
        numbers = sorted({int(n) for n in np.atleast_1d(np.asarray(wanted)).tolist()})
        lost = [n for n in numbers if n not in there]
        if lost or not numbers:
            raise DataError(f"{layout.betas_folder} has no sessions {lost}; it has {there}.")
    if max(numbers) > planned:
        raise DataError(f"session {max(numbers)} of {layout.name} is not in the design of {planned} sessions.")
    return numbers


def _mask(layout: Layout, regions: Regions, voxels: Any) -> np.ndarray:
    if isinstance(voxels, str) and ".nii" not in voxels:
        return regions.union(voxels)
    if isinstance(voxels, (list, tuple)) and all(isinstance(v, str) for v in voxels):
        return regions.union(voxels)
    if isinstance(voxels, (str, os.PathLike)) or hasattr(voxels, "dataobj"):
        image = open_mask(voxels, "voxels")
        if layout.affine is not None:
            check_affine(image, layout.affine, names=("voxels", f"{layout.name} in {layout.space}"))
        voxels = binary_mask(image, "voxels")
    mask = np.asarray(voxels)
    expected = layout.shape if layout.kind == "volume" else (layout.n_places,)
    if mask.dtype != bool or mask.shape != tuple(expected):
        raise DataError(f"voxels is {mask.dtype} of shape {mask.shape} (expected bool of shape {tuple(expected)}).")
    return mask.reshape(-1)


def _template(
    layout: Layout, regions: Regions, places: np.ndarray, trials: Any, rois: Any, zscore: bool, settings: Any
) -> xr.DataArray:
    """Every label of the presentations, over values that take no memory."""
    if rois is True or rois == "all":
        masks = regions.all_masks()
        masks = {n: m for n, m in masks.items() if rois == "all" or not n.startswith("HCP_MMP1:")}
    else:
        masks = {n: regions.mask(n) for n in ([rois] if isinstance(rois, str) else rois or ())}
    ncsnr = layout.read_map("ncsnr", where="betas")
    n = len(trials)
    # One number seen as a whole array: labels are checked before anything large exists.
    empty = np.broadcast_to(np.zeros((), dtype=np.float32), (n, len(places)))
    made = make_responses(
        empty,
        stimulus=stimulus_name(trials["nsd_id"].to_numpy()),
        subject=layout.name,
        session=trials["session"].to_numpy(),
        run=trials["run"].to_numpy(),
        repeat=trials["repeat"].to_numpy(),
        voxel=places,
        ncsnr=None if ncsnr is None else ncsnr[places],
        space=layout.space,
        units="% signal change",
        source="nsd",
        licence=LICENCE,
        provenance=settings,
        **layout.coordinates(places),
    )
    if masks:
        made = made.assign_coords(roi=("voxel", joined_names(masks, places)))
    if zscore:
        made.attrs.update(units="z", zscored="session", zscored_n=n)
        made.attrs["provenance"] = provenance_step(made.attrs, "zscore", by="session", ddof=0)
    return made


def _values(
    layout: Layout,
    files: dict[int, tuple[Path, ...]],
    numbers: list[int],
    places: np.ndarray,
    template: xr.DataArray,
    per_session: int,
    zscore: bool,
    repeats: str,
    cache: Any,
    settings: dict[str, Any],
    budget: int,
    progress: bool,
) -> xr.DataArray:
    # Labels are held beside the blocks; a part of the budget is always left to these.
    budget = max(budget // 4, budget - 3 * sum(c.nbytes for c in template.coords.values()))
    # An eighth of it for a block of one session, which is held twice while it is stored.
    width = max(1, budget // 8 // (4 * per_session))
    chunk = voxels_per_chunk(per_session, len(places), budget)
    width = max(chunk, width // chunk * chunk)
    blocks = [slice(s, min(s + width, len(places))) for s in range(0, len(places), width)]
    constant = np.zeros(len(places), dtype=np.int64)

    packed = layout.kind == "volume" and files[numbers[0]][0].suffix != ".hdf5"
    spool: dict[int, Spool] = {}

    def read(n: int, block: slice) -> np.ndarray:
        own = files[numbers[n]]
        if packed and len(blocks) > 1 and cache is not False:
            if n not in spool:
                _close(spool)
                with storage_errors(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                spool[n] = Spool(layout, own, places, budget // 8, folder)
            values = spool[n].read(block)
        else:
            values = read_session(layout, own, places[block], budget // 8)
        if zscore:
            constant[block] += zscore_in_place(values, budget // 16)
        return values

    bounds = [(n * per_session, (n + 1) * per_session) for n in range(len(numbers))]
    bar = progress_bar(desc=f"{layout.name} sessions", total=len(numbers) * len(blocks), show=progress)
    folder = cache_dir() / "nsd" if cache is True else Path(cache or ".").expanduser()
    with bar, ExitStack() as stack:
        stack.callback(_close, spool)
        if cache is False:
            responses = _in_memory(template, bounds, blocks, read, bar.update, budget, repeats)
        else:
            stamps = [stamp(p) for n in numbers for p in files[n]]
            kept = {k: v for k, v in settings.items() if k not in ("voxels", "food")}
            key = hash_json({"format": _FORMAT, **kept, "places": hash_array(places), "files": stamps})[:20]
            path = folder / f"{layout.name}-{layout.space}-{_short(layout.betas)}-{key}.zarr"
            if not path.is_dir():
                session_store(path, template, bounds, blocks, chunk, read, bar.update)
            responses = _stored(path, template, repeats, budget)
    if constant.any():
        warnings.warn(
            f"{int((constant > 0).sum())} of {len(places)} voxels of {layout.name} are constant within at least one"
            f" session ({int((constant == len(numbers)).sum())} in all of them): they left the image there. They are"
            " 0 there.",
            stacklevel=3,
        )
    return responses


def _close(spool: dict[int, Spool]) -> None:
    while spool:
        spool.popitem()[1].close()


def _in_memory(
    template: xr.DataArray, bounds: Any, blocks: Any, read: Any, advance: Any, budget: int, repeats: str
) -> xr.DataArray:
    needed = template.size * 4 * (2 if repeats == "average" else 1)
    if needed > budget // 2:
        raise DataError(
            f"{template.shape[0]} trials of {template.shape[1]} voxels need {needed:,} bytes, more than half of"
            f" max_memory ({budget:,}). Next step: cache=True streams them through the disk; or ask for fewer voxels."
        )
    values = np.empty(template.shape, dtype=np.float32)
    for n, (first, last) in enumerate(bounds):
        for block in blocks:
            values[first:last, block] = read(n, block)
            advance(1)
    responses = template.copy(deep=False, data=values)
    return average_repeats(responses) if repeats == "average" else responses


def _stored(path: Path, template: xr.DataArray, repeats: str, budget: int) -> xr.DataArray:
    if repeats == "keep":
        return load_store(path, template, budget)
    import pandas as pd

    # Labels of the averaged form, from an array without voxels.
    labels = average_repeats(template[:, :0].copy(deep=False, data=np.zeros((template.shape[0], 0), dtype=np.float32)))
    numbers, _ = pd.factorize(template["stimulus"].values)
    counts = labels["n_repeats"].values
    coords = {k: v for k, v in labels.coords.items() if "voxel" not in v.dims}
    coords |= {k: v for k, v in template.coords.items() if v.dims == ("voxel",)}
    empty = np.broadcast_to(np.zeros((), dtype=np.float32), (len(counts), template.shape[1]))
    averaged = xr.DataArray(empty, dims=labels.dims, coords=coords, attrs=labels.attrs, name=labels.name)
    target = path.with_name(f"{path.stem}-average.zarr")
    if not target.is_dir():
        averaged_store(target, path, averaged, numbers, counts, budget)
    return load_store(target, averaged, budget)


def _short(betas: str) -> str:
    return next(k for k, v in BETAS.items() if v == betas)
