"""Regions of the Natural Scenes Dataset by name: labels, unions of labels, and the voxel sets of the papers."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.data._volumes import read_labels
from neuroenc.data.datasets._nsd._layout import Layout

_WRITTEN = tomllib.loads(Path(__file__).with_name("regions.toml").read_text(encoding="utf-8"))
#: Label images and their labels; names for several labels together; localiser maps of t values by category.
FILES, UNIONS = ({name: tuple(labels) for name, labels in _WRITTEN[k].items()} for k in ("files", "unions"))
TVALUES: dict[str, str] = _WRITTEN["tvalues"]
_PREFIXED = ("Kastner2015", "HCP_MMP1")
_CORTEX = [f for f in FILES if f != "streams"]
_TOP_PARCELS = 45
#: Voxel sets that papers define: by category, label > 0 and t > 2; prf-visualrois > 0; any label image
#: >= 0 (-1 is outside cortex, 0 is cortex without a label); prf-visualrois > 0, any floc-* > 0, or one of the 45
#: HCP_MMP1 parcels whose mean ncsnr ranks highest over subjects; of these all that is not retinotopic; brainmask > 0
#: (volumes), or every vertex (surfaces).
RECIPES = (*TVALUES, "retinotopic", "cortex", "visual", "higher-visual", "brain")


class Regions:
    """Masks (n_places,) of one subject by name; files are read when first asked for."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.notes: dict[str, Any] = {}
        self._labels: dict[str, np.ndarray | None] = {}
        self._tables: dict[str, dict[int, str]] = {}

    def labels(self, file: str) -> np.ndarray | None:
        """Label image as whole numbers (NaN is -1), or None where the file is absent."""
        if file not in self._labels:
            values = self.layout.read_map(file)
            if values is not None:
                values = np.nan_to_num(values.astype(np.float64), nan=-1.0)
                if (values != np.round(values)).any():
                    raise DataError(
                        f"{file} of {self.layout.name} has values between whole numbers: it was resampled with "
                        "interpolation. Next step: use the data set's own file."
                    )
                values = values.astype(np.int32)
            self._labels[file] = values
        return self._labels[file]

    def table(self, file: str) -> dict[int, str]:
        """Label numbers and public names, from the colour table or as documented."""
        if file not in self._tables:
            path = self.layout.colour_table(file)
            names = read_labels(path) if path else dict(enumerate(FILES[file], start=1))
            prefix = f"{file}:" if file in _PREFIXED else ""
            self._tables[file] = {k: prefix + v.rstrip("\\") for k, v in names.items() if k > 0}
        return self._tables[file]

    def files(self) -> list[str]:
        return [f for f in FILES if self.labels(f) is not None]

    def label_masks(self, file: str) -> dict[str, np.ndarray]:
        """Public name -> mask, for every label that occurs in a file."""
        values = self.labels(file)
        if values is None:
            return {}
        unnamed = f"{file}:{file}" if file in _PREFIXED else file
        return {self.table(file).get(int(n), f"{unnamed}-{n}"): values == n for n in np.unique(values) if n > 0}

    def all_masks(self) -> dict[str, np.ndarray]:
        """Every label, union and category recipe that the files give (without empty ones)."""
        masks = {name: mask for file in self.files() for name, mask in self.label_masks(file).items()}
        for name, parts in UNIONS.items():
            have = [masks[p] for p in parts if p in masks]
            if have:
                masks[name] = np.any(have, axis=0)
        for name in TVALUES:
            if self.labels(f"floc-{name}") is not None and self._tvalues(name) is not None:
                masks[name] = self.mask(name)
        return {name: mask for name, mask in masks.items() if mask.any()}

    def mask(self, name: str) -> np.ndarray:
        """One region, by the name of a file, label, union or recipe; ``NAME-t2`` adds t > 2."""
        if name in RECIPES:
            return self._recipe(name)
        if name in FILES:
            return self._need(name) > 0
        if name.endswith("-t2"):
            return self._above(name[:-3])
        return np.any([self._label(part) for part in UNIONS.get(name, (name,))], axis=0)

    def names(self) -> list[str]:
        return [*RECIPES, *self.files(), *UNIONS, *(n for f in self.files() for n in self.label_masks(f))]

    def union(self, names: str | Iterable[str]) -> np.ndarray:
        names = [names] if isinstance(names, str) else list(names)
        if not names:
            raise ConfigError("no region was asked for.")
        return np.any([self.mask(n) for n in names], axis=0)

    def _need(self, file: str) -> np.ndarray:
        values = self.labels(file)
        if values is None:
            raise DataError(
                f"{self.layout.name} has no {file} in {self.layout.space}; it has {self.files()}. Next step: "
                "download it from nsddata/ppdata (volumes) or nsddata/freesurfer (surfaces)."
            )
        return values

    def _label(self, name: str) -> np.ndarray:
        for file in FILES:
            plain = name if file in _PREFIXED else name.removeprefix(f"{file}:")
            # A label of the table that no voxel has (aTL-faces in some subjects) is an empty region.
            if numbers := [k for k, v in self.table(file).items() if v == plain]:
                return np.isin(self._need(file), numbers)
        raise ConfigError(unknown_name(f"region of {self.layout.name} in {self.layout.space}:", name, self.names()))

    def _tvalues(self, category: str) -> np.ndarray | None:
        return self.layout.read_map(f"floc_{TVALUES[category]}", where="func")

    def _above(self, name: str) -> np.ndarray:
        tables = {c: set(self.table(f"floc-{c}").values()) | {c} for c in TVALUES}
        category = next((c for c, known in tables.items() if set(UNIONS.get(name, (name,))) <= known), None)
        if category is None:
            legal = [v for c in TVALUES for v in self.table(f"floc-{c}").values()]
            raise ConfigError(unknown_name("localiser region (NAME-t2):", name, [*legal, "FFA", "FBA", "VWFA"]))
        t = self._tvalues(category)
        if t is None:
            raise DataError(
                f"{self.layout.name} has no t values floc_{TVALUES[category]} in {self.layout.space}. Next step: "
                f"download them, or take the whole label with voxels='floc-{category}'."
            )
        labelled = self._need(f"floc-{category}") > 0 if name in TVALUES else self.mask(name)
        with np.errstate(invalid="ignore"):
            return np.asarray(labelled & (t > 2))

    def _recipe(self, name: str) -> np.ndarray:
        if name in TVALUES:
            return self._above(name)
        if name == "retinotopic":
            return self._need("prf-visualrois") > 0
        if name == "cortex":
            have = [self.labels(f) for f in _CORTEX if self.labels(f) is not None]
            if not have:
                self._need("nsdgeneral")
            return np.asarray(np.any([x >= 0 for x in have if x is not None], axis=0))
        if name == "brain":
            mask = self.layout.read_map("brainmask", where="func") if self.layout.kind == "volume" else None
            if self.layout.kind == "volume" and mask is None:
                raise DataError(f"{self.layout.name} has no brainmask in {self.layout.space}.")
            return np.ones(self.layout.n_places, dtype=bool) if mask is None else mask > 0
        early = self._need("prf-visualrois") > 0
        parts = [early, *(self._need(f"floc-{c}") > 0 for c in TVALUES), self._top_parcels()]
        visual = np.any(parts, axis=0)
        return np.asarray(visual & ~early) if name == "higher-visual" else np.asarray(visual)

    def _top_parcels(self) -> np.ndarray:
        """Parcels ranked by mean ncsnr in each subject; ranks are averaged over the subjects that are there."""
        ranks, subjects = [], []
        for subject in range(1, 9):
            other = self.layout if subject == self.layout.subject else self.layout.with_subject(subject)
            ncsnr = other.read_map("ncsnr", where="betas") if other.betas_folder.is_dir() else None
            parcels = self.labels("HCP_MMP1") if other is self.layout else Regions(other).labels("HCP_MMP1")
            if ncsnr is None or parcels is None:
                continue
            use = (parcels > 0) & np.isfinite(ncsnr)
            means = pd.Series(ncsnr[use]).groupby(parcels[use]).mean()
            ranks.append(means.rank(ascending=False))
            subjects.append(subject)
        mine = self._need("HCP_MMP1")
        if self.layout.subject not in subjects:
            raise DataError(f"{self.layout.betas_folder} has no ncsnr, which ranks the parcels of the visual set.")
        order = pd.concat(ranks, axis=1).mean(axis=1).sort_values(kind="stable")
        chosen = order.index[:_TOP_PARCELS].to_numpy()
        self.notes["parcels ranked over subjects"] = subjects
        return np.isin(mine, chosen)


def nsd_mask(
    root: str | os.PathLike[str],
    subject: int | str,
    voxels: str | Iterable[str] = "nsdgeneral",
    *,
    space: str = "func1pt8mm",
    betas: str = "b3",
) -> np.ndarray:
    """Boolean mask of named regions: ``mask = OR over names``.

    Names are those of files (``"floc-faces"``), labels (``"FFA-1"``, ``"HCP_MMP1:V1"``), unions (``"V1"``, ``"FFA"``),
    localiser regions with t > 2 (``"FFA-t2"``), and recipes of the papers: ``faces, bodies, places, words`` (label and
    t > 2), ``retinotopic``, ``cortex``, ``visual``, ``higher-visual``, ``brain``.

    Parameters
    ----------
    root : path
        Folder with nsddata and nsddata_betas.
    subject : 1 to 8, or "subj01"
    voxels : str or iterable of str
    space : {"func1pt8mm", "func1mm", "fsaverage", "nativesurface"}
    betas : {"b1", "b2", "b3"}
        Version whose ncsnr ranks the parcels of ``visual``.

    Returns
    -------
    bool array, (x, y, z) or (vertex,) with the left hemisphere first

    References
    ----------
    Allen et al. (2022), Nature Neuroscience 25:116. Luo et al. (2023), arXiv:2310.04420 (the visual set).

    Examples
    --------
    >>> import tempfile
    >>> from neuroenc.data.simulate import nsd_tree
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = nsd_tree(folder, n_subjects=1)
    ...     both, v1 = nsd_mask(folder, 1, ["V1", "hV4"]), nsd_mask(folder, 1, "V1")
    >>> both.ndim, bool((both | ~v1).all())
    (3, True)
    """
    layout = Layout.open(root, subject, space, betas)
    flat = Regions(layout).union(voxels)
    return flat.reshape(layout.shape) if layout.kind == "volume" else flat
