"""Files for other programs: captions, scores, volumes, surfaces, and maps of names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.files import atomic_path, write_json, write_text
from neuroenc._core.tables import write_table
from neuroenc.report._style import category_colours, hex_colours

# Vertices of a hemisphere.
MESHES = {"fsaverage5": 10242, "fsaverage6": 40962, "fsaverage7": 163842, "fsaverage": 163842, "fsLR-32k": 32492}


def numeric_scores(scores: xr.Dataset) -> list[str]:
    """Names of the numeric variables with one value per voxel."""
    return [
        str(name)
        for name, values in scores.data_vars.items()
        if values.dims == ("voxel",) and (values.dtype.kind in "fiu" or values.dtype == bool)
    ]


def places(scores: xr.Dataset) -> tuple[bool, bool, str]:
    """Whether voxels have places in a volume, and on a surface, and why maps are left out if they are.

    Several subjects in one data set share places: no single map can hold them.
    """
    volume = all(axis in scores.coords for axis in "ijk") and {"affine", "volume_shape"} <= set(scores.attrs)
    surface = "vertex" in scores.coords and "hemi" in scores.coords
    for kind in ([["i", "j", "k"]] if volume else []) + ([["hemi", "vertex"]] if surface else []):
        shared = int(pd.DataFrame({x: scores[x].values for x in kind}).duplicated().sum())
        if shared:
            place = " and ".join(kind) if len(kind) == 2 else "i, j, k"
            said = f"{shared} voxels share their {place} with another (several subjects?), so no maps were made; "
            return False, False, said + "write one report per subject for maps."
    return volume, surface, ""


def _file_part(name: str) -> str:
    """A score's name as part of a file's name: it cannot lead out of the folder."""
    if not name.isprintable() or not name.strip() or name.startswith(".") or set(name) & set('/\\:*?"<>|'):
        raise DataError(f"score {name!r} cannot be part of a file's name. Next step: rename it.")
    return name


def vertices_of(scores: xr.Dataset) -> int:
    """Vertices per hemisphere of the named mesh, or of the smallest fsaverage mesh that holds all; else the highest."""
    highest = int(scores["vertex"].values.max()) + 1
    named = MESHES.get(str(scores.attrs.get("space", "")), 0)
    fitting = [n for n in (10242, 40962, 163842) if n >= highest]
    return named if named >= highest else (fitting[0] if fitting else highest)


def map_files(scores: xr.Dataset) -> list[str]:
    """Patterns of the files that `write_maps` writes."""
    volume, surface, _ = places(scores)
    dense = str(scores.attrs.get("space", "")).startswith("fsLR")
    return ["maps/*.nii.gz"] * volume + ["maps/*.dscalar.nii" if dense else "maps/*.func.gii"] * surface


def write_captions(folder: Path, captions: pd.DataFrame) -> list[Path]:
    """``captions.csv`` and ``captions.json`` (a list of records; a missing number is null)."""
    write_table(captions, folder / "captions.csv")
    write_json(folder / "captions.json", captions.astype(object).where(captions.notna(), None).to_dict("records"))
    return [folder / "captions.csv", folder / "captions.json"]


def write_scores(folder: Path, scores: xr.Dataset) -> Path:
    """``scores.nc``: every variable, coordinate and attribute."""
    from neuroenc.data import save

    save(scores, folder / "scores.nc")
    return folder / "scores.nc"


def write_maps(folder: Path, scores: xr.Dataset, names: Iterable[str]) -> list[Path]:
    """One NIfTI per score where voxels have i, j, k; one GIFTI per score and hemisphere where vertices.

    On fsLR one CIFTI per score holds both hemispheres, as that space's programs expect.
    Values outside are NaN in both: a voxel that was not measured is not a voxel predicted at zero.
    """
    from neuroenc.data import to_cifti, to_gifti, unmask

    volume, surface, _ = places(scores)
    written: list[Path] = []
    for name in names:
        values = np.asarray(scores[name].values, dtype=np.float32)
        if volume:
            image = unmask(scores[name].astype(np.float32).assign_attrs(scores.attrs))
            written.append(save_image(image, folder / "maps" / f"{_file_part(name)}.nii.gz"))
        if surface:
            vertex, hemis = scores["vertex"].values, scores["hemi"].values
            if str(scores.attrs.get("space", "")).startswith("fsLR"):
                dense = to_cifti(values, vertex, hemis, vertices_of(scores), name=name)
                written.append(save_image(dense, folder / "maps" / f"{_file_part(name)}.dscalar.nii"))
                continue
            meshes = to_gifti(values, vertex, hemis, n_vertices=vertices_of(scores), name=name)
            for hemi, mesh in meshes.items():
                written.append(save_image(mesh, folder / "maps" / f"{_file_part(name)}_hemi-{hemi}.func.gii"))
    return written


def save_image(image: Any, path: Path) -> Path:
    """Write a nibabel image atomically."""
    import nibabel as nib

    with atomic_path(path) as temporary:
        nib.save(image, temporary)
    return path


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
    scores : Dataset
        Voxels with places.
    labels : array (voxel,) of str, "" for none
    names : tuple of str
        Names in the order of their integers, from 1.
    """
    from neuroenc.data import to_gifti, unmask

    volume, surface, _ = places(scores)
    at = {name: k + 1 for k, name in enumerate(names)}
    index = np.array([at.get(x, 0) for x in labels], np.int32)
    colours = hex_colours(len(names))
    lines = ["index\tname\tcolor", *(f"{k + 1}\t{_cell(n)}\t{h}" for k, (n, h) in enumerate(zip(names, colours)))]
    written = [write_text(folder / f"{kind}.tsv", "\n".join(lines) + "\n")]
    written.append(write_json(folder / f"{kind}.json", {"0": "no label"} | {str(k): n for n, k in at.items()}))
    if volume:
        numbers = xr.DataArray(index, dims="voxel", coords=scores["r"].coords, attrs=scores.attrs)
        image = unmask(numbers, dtype=np.int16 if len(names) < 2**15 else np.int32)
        image.header.set_intent("label", name=kind[:15])
        written.append(save_image(image, folder / f"{kind}.nii.gz"))
    if surface:
        hemis = np.array([str(h)[:1].upper() for h in scores["hemi"].values])
        meshes = to_gifti(index, scores["vertex"].values, hemis, vertices_of(scores), fill=0)
        for side, mesh in meshes.items():
            listed = ["no label", *map(_cell, names)]
            labelled = label_image(mesh.darrays[0].data, listed, dict(mesh.meta), {"Name": kind})
            written.append(save_image(labelled, folder / f"{kind}_hemi-{side}.label.gii"))
    return written


def label_image(
    data: np.ndarray, names: Sequence[str], meta: Mapping[str, str], array_meta: Mapping[str, str] | None = None
) -> Any:
    """A GIFTI label file: whole numbers, and the table that names them, from 0, and colours all but 0."""
    from nibabel.gifti.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiLabelTable, GiftiMetaData

    table = GiftiLabelTable()
    for key, (name, rgba) in enumerate(zip(names, [(0.0, 0.0, 0.0, 0.0), *category_colours(len(names) - 1)])):
        label: Any = GiftiLabel(key, *rgba)
        label.label = name
        table.labels.append(label)
    kind: Any = {"intent": "NIFTI_INTENT_LABEL", "datatype": "NIFTI_TYPE_INT32"}
    array = GiftiDataArray(data.astype(np.int32), meta=GiftiMetaData(array_meta or {}), **kind)
    return GiftiImage(meta=GiftiMetaData(meta), labeltable=table, darrays=[array])
