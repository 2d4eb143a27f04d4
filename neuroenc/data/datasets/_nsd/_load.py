"""One call from the official folders of the Natural Scenes Dataset to labelled responses."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc._core.checks import keywords
from neuroenc._core.errors import DataError
from neuroenc._core.files import hash_array
from neuroenc.data._stimuli import EncodingData
from neuroenc.data.datasets._nsd import _design
from neuroenc.data.datasets._nsd._layout import Layout, n_trials, read_session, unpacked_session
from neuroenc.data.datasets._nsd._rois import Regions
from neuroenc.data.datasets._recording import Recording, collect, flat_mask, sessions_of
from neuroenc.data.datasets._registry import Dataset, Found, Source


class NSD(Dataset):
    """The Natural Scenes Dataset (Allen et al. 2022) in its official folders."""

    name, title = "nsd", "Natural Scenes Dataset"
    expected = "nsddata, nsddata_betas and nsddata_stimuli"

    def recognise(self, folder: Path) -> Found | None:
        missing = tuple(x for x in ("nsddata", "nsddata_betas", "nsddata_stimuli") if not (folder / x).is_dir())
        if len(missing) == 3 or missing[:2] == ("nsddata", "nsddata_betas"):
            return None
        betas = sorted((folder / "nsddata_betas" / "ppdata").glob("subj*/*/betas_*"))
        subjects = sorted({p.parents[1].name for p in betas})
        kinds = sorted({f"{p.parent.name}/{p.name}" for p in betas})
        has = {"subjects": ", ".join(subjects) or "none with betas", "betas": ", ".join(kinds) or "none"}
        call = f'load_dataset("nsd", root="{folder}", subject={int(subjects[0][4:]) if subjects else 1})'
        return Found(self.name, self.title, folder, has, missing, call)

    def options(self) -> dict[str, Any]:
        return {"subject": 1, **{k: v for k, v in keywords(nsd).items() if k != "progress"}}

    def load(self, source: Source, **options: Any) -> EncodingData:
        return nsd(self.root(source), options.pop("subject", 1), progress=source.progress, **options)


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
    cache : bool or path
        Folder in which prepared sessions are kept, by the content of their files and the settings; True is
        ``responses`` in neuroenc's cache folder. False reads into memory.
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
    layout = Layout.open(root, subject, space, betas)
    design = _design.read_design(layout)
    ending, files = layout.sessions(file_format)
    numbers = sessions_of(files, sessions, f"{layout.name} in {layout.betas_folder}")
    gaps = sorted(set(range(1, max(numbers) + 1)) - set(numbers))
    if sessions is None and gaps:
        warnings.warn(
            f"{layout.name} has sessions {numbers[0]} to {numbers[-1]} without {gaps}; rows keep their numbers.",
            stacklevel=2,
        )
    if max(numbers) > design.n_sessions:
        raise DataError(
            f"session {max(numbers)} of {layout.name} is not in the design of {design.n_sessions} sessions."
        )
    regions = Regions(layout)
    places = np.flatnonzero(mask_of(layout, regions, voxels))
    if not places.size:
        raise DataError(f"voxels={voxels!r} selects none of {layout.n_places} places of {layout.name}.")
    trials = design.trials(layout.subject)
    trials = trials[trials["session"].isin(numbers)]
    for number in numbers:
        found = n_trials(files[number])
        if found != design.per_session:
            raise DataError(
                f"{files[number][0]} holds {found} trials, the design shows {design.per_session} in a session. "
                "Next step: download it again."
            )
    chosen = voxels if isinstance(voxels, (str, list, tuple)) else "mask " + hash_array(places)[:12]
    settings = {"data": "nsd", "subject": layout.name, "space": space, "betas": layout.betas, "sessions": numbers}
    settings |= {"voxels": chosen, "format": ending}
    counts: dict[int, int] | None
    try:
        counts = _design.session_counts(layout, design)
    except DataError:
        # A tree with some subjects only still has the shared pictures.
        counts = None
    shared = {s: _design.shared_ids(design, s, counts) for s in _design.SPLITS if counts or s == "shared1000"}
    packed = layout.kind == "volume" and ending != "hdf5" and cache is not False
    held: dict[int, np.ndarray] = {}

    def read(rows: slice, block: slice, budget: int) -> np.ndarray:
        number = numbers[rows.start // design.per_session]
        if not packed or block == slice(0, len(places)):
            return read_session(layout, files[number], places[block], budget)
        if number not in held:
            held.clear()
            held[number] = unpacked_session(layout, files[number][0], places, budget)
        return np.array(held[number][:, block])

    ncsnr = layout.read_map("ncsnr", where="betas")
    labels: dict[str, Any] = {k: trials[k].to_numpy() for k in ("session", "run", "repeat")}
    labels |= {"stimulus": _design.stimulus_name(trials["nsd_id"].to_numpy()), "subject": layout.name, "voxel": places}
    labels |= {"roi": roi_of(regions, rois, places), "ncsnr": None if ncsnr is None else ncsnr[places]}
    labels |= {"space": layout.space, "units": "% signal change", "source": "nsd", "licence": _design.LICENCE}
    labels |= layout.coordinates(places)
    info = _design.read_stimulus_table(layout, design)
    stimuli = _design.read_stimuli(layout, trials, info, shared, captions)
    extra: dict[str, Any] = {"splits": {name: _design.stimulus_name(rows) for name, rows in shared.items()}}
    extra |= {"n_sessions": counts, "missing_sessions": gaps, "notes": regions.notes}
    used = [p for n in numbers for p in files[n]]
    recording = Recording(labels, read, stimuli, used, settings, extra=extra, keep=True)
    return collect(recording, zscore=zscore, repeats=repeats, cache=cache, max_memory=max_memory, progress=progress)


def mask_of(layout: Layout, regions: Regions, voxels: Any) -> np.ndarray:
    """Flat mask of the voxels that `nsd` is asked for."""
    names = [voxels] if isinstance(voxels, str) and ".nii" not in voxels else voxels
    if isinstance(names, (list, tuple)) and all(isinstance(v, str) for v in names):
        return regions.union(names)
    shape = layout.shape if layout.kind == "volume" else (layout.n_places,)
    return flat_mask(voxels, shape, f"{layout.name} in {layout.space}", layout.affine)


def roi_of(regions: Regions, rois: Any, places: np.ndarray) -> Any:
    """Names of each voxel's regions."""
    if rois is True or rois == "all":
        masks = regions.all_masks()
        masks = {n: m for n, m in masks.items() if rois == "all" or not n.startswith("HCP_MMP1:")}
    else:
        masks = {n: regions.mask(n) for n in ([rois] if isinstance(rois, str) else rois or ())}
    return {name: mask[places] for name, mask in masks.items()} if masks else None
