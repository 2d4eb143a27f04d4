"""Files of a study for other programs: tables, label maps with their look-up tables, score maps."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from neuroenc._core.files import atomic_path, write_json, write_text
from neuroenc._core.tables import write_table
from neuroenc.report._caption_data import VoxelTable
from neuroenc.report._exports import (
    _n_vertices,
    _save,
    numeric_scores,
    places,
    write_captions,
    write_maps,
    write_scores,
)
from neuroenc.report._style import category_colours

if TYPE_CHECKING:
    from neuroenc.captions import CaptionStudy

__all__ = ["write_label_maps", "write_study_files"]


def _cell(value: Any) -> str:
    """A name in a tab-separated file: no tab, no line end."""
    return " ".join(str(value).split())


def write_label_maps(
    folder: Path, scores: xr.Dataset, labels: np.ndarray, names: tuple[str, ...], kind: str
) -> list[Path]:
    """What each voxel is about, as integers: ``KIND.nii.gz`` and ``KIND_hemi-L.label.gii``, 0 = no label.

    The look-up table ``KIND.tsv`` (``index, name, color``, as BIDS has it) and ``KIND.json`` name the integers.

    Parameters
    ----------
    folder : path
    scores : Dataset
        Voxels with places.
    labels : array (voxel,) of str, "" for none
    names : tuple of str
        Names in the order of their integers, from 1.
    kind : str
    """
    import nibabel as nib
    from nibabel.gifti.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiLabelTable, GiftiMetaData

    from neuroenc.data import unmask

    volume, surface, _ = places(scores)
    colours = category_colours(len(names))
    at = {name: k + 1 for k, name in enumerate(names)}
    index = np.array([at.get(x, 0) for x in labels], np.int32)
    hexes = ["#" + "".join(f"{round(255 * c):02x}" for c in rgba[:3]) for rgba in colours]
    lines = ["index\tname\tcolor", *(f"{k + 1}\t{_cell(n)}\t{h}" for k, (n, h) in enumerate(zip(names, hexes)))]
    written = [write_text(folder / f"{kind}.tsv", "\n".join(lines) + "\n")]
    written.append(write_json(folder / f"{kind}.json", {"0": "no label"} | {str(k): n for n, k in at.items()}))
    if volume:
        image = unmask(
            xr.DataArray(index, dims="voxel", coords=scores["r"].coords).assign_attrs(scores.attrs),
            dtype=np.int16 if len(names) < 2**15 else np.int32,
        )
        image.header.set_intent("label", name=kind[:15])
        written.append(_save(image, folder / f"{kind}.nii.gz", nib))
    if surface:
        n = _n_vertices(scores)
        hemis = np.array([str(h)[:1].upper() for h in scores["hemi"].values])
        for side, structure in (("L", "CortexLeft"), ("R", "CortexRight")):
            here = hemis == side
            if not here.any():
                continue
            data = np.zeros(n, np.int32)
            data[scores["vertex"].values[here]] = index[here]
            table = GiftiLabelTable()
            for key, (name, rgba) in enumerate([("no label", (0.0, 0.0, 0.0, 0.0)), *zip(names, colours)]):
                label: Any = GiftiLabel(key, *rgba)
                label.label = _cell(name)
                table.labels.append(label)
            mesh = GiftiImage(meta=GiftiMetaData({"AnatomicalStructurePrimary": structure}), labeltable=table)
            mesh.add_gifti_data_array(
                GiftiDataArray(
                    data, intent="NIFTI_INTENT_LABEL", datatype="NIFTI_TYPE_INT32", meta=GiftiMetaData({"Name": kind})
                )
            )
            written.append(_save(mesh, folder / f"{kind}_hemi-{side}.label.gii", nib))
    return written


def _map_scores(study: CaptionStudy, table: VoxelTable, rows: np.ndarray) -> xr.Dataset:
    """Scores of some voxels, with what was found of their captions."""
    scores = study.scores.isel(voxel=rows)
    frame = table.frame.iloc[rows]
    more = {"unsupported_share": "unsupported", "sentence_rho": "rho"}
    more |= {f"stability_{kind}": f"stability:{kind}" for kind in table.stability}
    for name, column in more.items():
        if column in frame and frame[column].notna().any():
            scores[name] = ("voxel", frame[column].to_numpy(np.float32))
    return scores


def write_study_files(
    study: CaptionStudy, table: VoxelTable, folder: Path, subjects: dict[str, tuple[str, np.ndarray]]
) -> list[str]:
    """Everything but the pages; names of what was written, for the page.

    ``subjects``: name -> (part of file names, rows). With one subject, maps stand in ``maps/``; with several, in
    ``subjects/SUBJECT/maps/``, because they share places.
    """
    from neuroenc.captions.checks._verdicts import with_failed_controls

    shown = ["captions.csv", "captions.json"]
    captions = with_failed_controls(study)
    write_captions(folder, captions)
    if find_spec("pyarrow") is not None:
        with atomic_path(folder / "captions.parquet") as temporary:
            text = {c: str for c in captions.columns if captions[c].dtype == object}
            captions.astype(text).to_parquet(temporary, index=False)
        shown.append("captions.parquet")
    for name in (
        "evidence",
        "phrases",
        "gate",
        "stability",
        "sentence",
        "words",
        "concepts",
        "categories",
        "clusters",
        "contrasts",
    ):
        frame = getattr(study, name)
        if frame is not None:
            write_table(frame, folder / f"{name}.csv")
            shown.append(f"{name}.csv")
    write_scores(folder, study.scores)
    write_text(folder / "methods.txt", study.methods())
    write_json(folder / "settings.json", dict(study.settings))
    write_json(folder / "provenance.json", dict(study.provenance))
    shown += ["scores.nc", "methods.txt", "settings.json", "provenance.json"]
    kind = str(table.frame.attrs["label_kind"])
    for slug, rows in subjects.values():
        where = folder if len(subjects) == 1 else folder / "subjects" / slug
        scores = _map_scores(study, table, rows)
        volume, surface, _ = places(scores)
        if not volume and not surface:
            continue
        write_maps(where, scores, numeric_scores(scores))
        write_label_maps(where / "maps", scores, table.frame["label"].to_numpy(object)[rows], table.labels, kind)
        before = "" if len(subjects) == 1 else "subjects/*/"
        endings = [".nii.gz"] * volume + [".func.gii", ".label.gii"] * surface
        shown += [x for x in (f"{before}maps/*{end}" for end in endings) if x not in shown]
    return shown


def embed_json(value: Any) -> str:
    """JSON that may stand inside a script element: no "<", so no tag can begin or end there.

    >>> embed_json({"caption": "</script>"})
    '{"caption":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for mark in "&<>\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text
