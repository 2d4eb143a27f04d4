"""Human BOLD to eight object categories in blocks (Haxby et al. 2001), one slice or the whole brain at 25 mm."""

from __future__ import annotations

import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.tables import numbers, read_table
from neuroenc.data._build import make_responses
from neuroenc.data._images import check_affine, image_values, open_image
from neuroenc.data._stimuli import EncodingData, Stimuli
from neuroenc.data.datasets._registry import Dataset, Source

TR = 2.5
_RUNS = range(1, 13)
_MASKS = ("brain", "gray", "hoc", "vt", "white")
# A voxel of the automatic mask has at least this share of the image's 98th percentile.
_MASK_SHARE = 0.25

_WRITTEN = tomllib.loads(Path(__file__).with_name("haxby2001.toml").read_text(encoding="utf-8"))
#: Category -> kind, and descriptions.
CATEGORIES: dict[str, tuple[str, tuple[str, ...]]] = {n: (c["kind"], tuple(c["texts"])) for n, c in _WRITTEN.items()}


class Haxby2001(Dataset):
    """Block responses per run, z-scored per run: 12 runs x 8 categories.

    ``y[b, v]`` = mean over the volumes ``t`` with ``onset_b + delay <= t < onset_b + duration_b + delay`` of the
    linearly detrended, per-run z-scored signal of voxel ``v``; then z-scored over the run's 8 blocks. Each run is
    treated alone, so a run can be left out. Motion estimates are not regressed out.

    Parameters
    ----------
    source
        Files of ``haxby2001-slice``.
    image
        "1slice": one axial slice, 40 x 20 voxels of 3.1 x 3.75 mm. "25mm": the whole brain at 25 mm.
    mask
        None is automatic: for "1slice" the voxels whose mean over all volumes exceeds a quarter of that image's 98th
        percentile, for "25mm" the mask "brain". "all" takes every voxel. "brain", "gray", "white", "hoc"
        (Harvard-Oxford cortex) and "vt" (ventral temporal: one voxel at this size) exist at 25 mm only, because the
        slice's affine keeps no anatomical origin.
    delay
        Seconds from an event's onset to its first volume. The published onsets lie 1 to 4.5 s (2.6 on average) after
        the design's own (12 s rest, then 24 s blocks every 36 s), so 2.5 is about 5 s after stimulus onset; with more,
        the last volumes fall into the rest that follows.

    Returns
    -------
    EncodingData
        ``responses`` float32 (presentation 96, voxel), units "s.d.", zscored "run"; stimulus = category, run 1..12,
        session 1, repeat = run - 1; i, j, k; ``roi`` "slice", or at 25 mm the names of the masks a voxel lies in.
        ``stimuli`` 8 categories with three descriptions each, no images. ``extra``: ``mask`` and ``mean``
        (Nifti1Image), ``masks`` (name -> Nifti1Image, 25 mm), ``events`` (DataFrame, seconds), ``tr`` (seconds).

    Raises
    ------
    ConfigError
        Unknown image or mask; the message names the nearest.
    DataError
        Images, masks and events do not belong together.

    References
    ----------
    Haxby et al. (2001). Distributed and overlapping representations of faces and objects in ventral temporal cortex.
    Science, 293, 2425-2430.
    """

    name, title = "haxby2001-slice", "Haxby 2001"

    def read(
        self, source: Source, *, image: str = "1slice", mask: str | None = None, delay: float = 2.5
    ) -> EncodingData:
        one_of("image of haxby2001-slice", image, ("1slice", "25mm"))
        legal = ("all", *_MASKS) if image == "25mm" else ("all",)
        if mask is not None and mask not in legal:
            why = "The masks of 25 mm cannot be placed on the slice (no anatomical origin); use image='25mm'."
            step = why if image == "1slice" and mask in _MASKS else "None is automatic."
            raise ConfigError(unknown_name(f"mask of image {image}", mask, legal, step))
        if not np.isfinite(delay) or not 0 <= delay <= 15:
            raise ConfigError(f"delay={delay!r} is not a haemodynamic delay in seconds; legal: 0 to 15, default 2.5.")
        bold = [f"sub001/BOLD/task001_run{r:03d}/bold_{image}.nii.gz" for r in _RUNS]
        events = [f"sub001/BOLD/task001_run{r:03d}/bold_events.tsv" for r in _RUNS]
        masks = [f"sub001/masks/25mm/{m}.nii.gz" for m in _MASKS] if image == "25mm" else []
        root = source.folder([*bold, *events, *masks])
        import nibabel

        nib: Any = nibabel
        with warnings.catch_warnings():
            # That the slice has no anatomical origin is said where its masks are refused.
            warnings.filterwarnings("ignore", message=".*neither sform nor qform.*")
            runs = [open_image(root / path, "BOLD") for path in bold]
            regions = {Path(path).name.split(".")[0]: open_image(root / path, "mask") for path in masks}
        shape, affine = runs[0].shape[:3], runs[0].affine
        for path, run in zip(bold, runs):
            check_affine(runs[0], run, names=(bold[0], path))
        data = [np.asarray(image_values(run, "BOLD"), dtype=np.float64) for run in runs]
        mean = np.mean([d.mean(axis=-1) for d in data], axis=0)
        for name, region in regions.items():
            check_affine(region, runs[0], names=(f"mask {name}", "BOLD"))
        inside = _mask(mask, mean, regions)
        alive = np.all([d.std(axis=-1) > 0 for d in data], axis=0)
        if mask is not None and (inside & ~alive).any():
            warnings.warn(
                f"{int((inside & ~alive).sum())} of {int(inside.sum())} voxels of mask {mask!r} are constant in a run; "
                "left out.",
                stacklevel=4,
            )
        inside &= alive
        tables = [_read_events(root / path) for path in events]
        values = np.concatenate([block_responses(d[inside].T, t, tr=TR, delay=delay) for d, t in zip(data, tables)])
        table = pd.concat([t.assign(run=r) for r, t in zip(_RUNS, tables)], ignore_index=True)
        ijk = np.argwhere(inside)
        roi = {n: np.asarray(r.dataobj)[inside] > 0 for n, r in regions.items()} or "slice"
        used = [*bold, *events, *masks]
        run, options = table["run"].to_numpy(), {"image": image, "mask": mask, "delay": float(delay)}
        place = {"ijk": ijk, "roi": roi, "space": f"native {image}", "affine": affine, "volume_shape": shape}
        labels: dict[str, Any] = {"stimulus": table["trial_type"].to_numpy(dtype=str), "subject": "sub001"}
        labels |= {"session": 1, "run": run, "repeat": run - 1, **place}
        labels |= {"units": "s.d.", "zscored": "run", "source": self.name}
        labels["provenance"] = {"data": self.name, "options": options, "sha256": source.checksums(used)}
        responses = make_responses(values.astype(np.float32), **labels, licence=source.manifest.licence)
        maps = {"mask": inside.astype(np.uint8), "mean": mean.astype(np.float32)}
        images = {name: nib.Nifti1Image(x, affine) for name, x in maps.items()}
        extra = images | {"masks": regions, "events": table, "tr": TR}
        return EncodingData(responses, _stimuli(source), extra=extra)


def block_responses(signal: np.ndarray, events: pd.DataFrame, *, tr: float, delay: float) -> np.ndarray:
    """Mean of the detrended, z-scored signal over each block's delayed volumes, z-scored over the blocks.

    Parameters
    ----------
    signal : array (time, voxel)
        One run; any unit. Voxels that are constant or a straight line give 0.
    events
        Columns ``onset`` and ``duration`` in seconds, one row per block.
    tr
        Seconds between volumes; volume ``n`` is at ``n * tr``.
    delay
        Seconds by which each block's window is shifted.

    Returns
    -------
    array (block, voxel), float64, standard deviations over the run's blocks (mean 0, s.d. 1, ddof 0)

    Raises
    ------
    DataError
        A block's window holds no volume.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> events = pd.DataFrame({"onset": [0.0, 10.0], "duration": [5.0, 5.0]})
    >>> signal = np.array([[0.0], [4.0], [4.0], [0.0], [0.0], [2.0], [2.0], [0.0]])
    >>> block_responses(signal, events, tr=2.5, delay=2.5).ravel().tolist()
    [1.0, -1.0]
    """
    from scipy.signal import detrend

    signal = np.asarray(signal, dtype=np.float64)
    series = _zscore(detrend(signal, axis=0, type="linear"), np.abs(signal).max(axis=0))
    time = np.arange(len(series)) * tr
    rows = []
    for onset, duration in zip(events["onset"], events["duration"]):
        # A thousandth of a volume absorbs rounding of onsets that lie on a volume.
        start, stop = onset + delay - tr / 1000, onset + duration + delay - tr / 1000
        inside = (time >= start) & (time < stop)
        if not inside.any():
            raise DataError(
                f"the block at {onset} s (delay {delay} s) holds no volume of a run that ends at {time[-1]} s. "
                "Next step: check onsets (seconds, not volumes), tr and delay."
            )
        rows.append(series[inside].mean(axis=0))
    return _zscore(np.stack(rows), np.ones(series.shape[1]))


def _zscore(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Along axis 0; columns whose spread is rounding error of numbers as large as ``scale`` become 0."""
    centred = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    flat = spread <= 1e-9 * scale
    return np.where(flat, 0.0, centred / np.where(flat, 1.0, spread))


def _mask(mask: str | None, mean: np.ndarray, regions: dict[str, Any]) -> np.ndarray:
    if mask == "all":
        return np.ones(mean.shape, dtype=bool)
    if mask is None and not regions:
        return mean > _MASK_SHARE * np.percentile(mean, 98)
    return np.asarray(regions[mask or "brain"].dataobj) > 0


def _read_events(path: Path) -> pd.DataFrame:
    table = read_table(path, ("onset", "duration", "trial_type"), sep="\t", what="events")
    for n, name in enumerate(table["trial_type"]):
        if name not in CATEGORIES:
            raise DataError(f"{path}, row {n + 1}: " + unknown_name("category", name, CATEGORIES))
    onset, duration = numbers(table, "onset", path), numbers(table, "duration", path, least=0)
    return pd.DataFrame({"onset": onset, "duration": duration, "trial_type": table["trial_type"].astype(str)})


def _stimuli(source: Source) -> Stimuli:
    ids = list(CATEGORIES)
    table = pd.DataFrame({"category": ids, "kind": [CATEGORIES[c][0] for c in ids]}, index=ids)
    captions = tuple(CATEGORIES[c][1] for c in ids)
    return Stimuli(np.array(ids), None, captions, table, source.manifest.name, source.manifest.licence)
