"""Generic Object Decoding (Horikawa & Kamitani 2017), in the authors' HDF5 format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import open_hdf5
from neuroenc._core.tables import numbers, read_table
from neuroenc.data._pictures import all_pictures
from neuroenc.data._stimuli import EncodingData, Stimuli
from neuroenc.data.datasets._recording import Recording, select_voxels, within
from neuroenc.data.datasets._registry import SESSIONS, Dataset, Source

_TYPES = {"training": 1, "test": 2, "imagery": 3}


class GenericObjectDecoding(Dataset):
    r"""Responses of one subject of Generic Object Decoding.

    Rows are as published (one a trial: its volumes averaged after the authors' normalisation by run). Runs are numbered
    anew over the parts, because each part counts its own; sessions are not told.

    Parameters
    ----------
    source
        ``root`` holds ``Subject1.h5``, and if you have them the pictures (``images/training``, ``images/test``).
    subject : 1 to 5
    parts : names out of "training", "test", "imagery"
        Training pictures are shown once, the 50 test pictures 35 times; in imagery nothing is shown, so its rows name
        the imagined test category's picture.
    voxels : "all", or names of regions
        V1, ..., LOC, FFA, PPA, HVC, VC.
    repeats : {"keep", "average"}
        A picture that is both seen and imagined cannot be averaged.
    zscore : bool
        Within runs.
    cache, max_memory
        As for `neuroenc.data.nsd`.

    Returns
    -------
    EncodingData
        ``responses`` with run, repeat, roi; i, j, k where the voxels' millimetres lie on a regular grid (its affine is
        derived from them). ``stimuli``: ids such as "n01518878_5958", table with ``stimulus_id, wnid, image, split,
        file``. ``extra["splits"]``: training, test; ``extra["part"]``: the part of each row; ``extra["mm"]``.

    References
    ----------
    Horikawa & Kamitani (2017), Generic decoding of seen and imagined objects using hierarchical visual features, Nature
    Communications 8:15037.
    """

    name, title = "god", "Generic Object Decoding"
    common = SESSIONS | {"zscore": False}
    expected = "Subject1.h5 (with dataset and metadata/key, metadata/value), image_training_id.csv, image_test_id.csv"

    def subjects(self, folder: Path) -> list[str]:
        return sorted({p.stem for p in within(folder, "Subject*.h5") if re.fullmatch(r"Subject\d", p.stem)})

    def missing(self, folder: Path) -> list[str]:
        return [] if within(folder, "*.JPEG") else ["pictures (images/training, images/test)"]

    def load(self, source: Source, **options: Any) -> EncodingData:
        parts = options.get("parts", ())
        parts = {parts} if isinstance(parts, str) else set(parts)
        if options.get("repeats") == "average" and {"test", "imagery"} <= parts:
            raise ConfigError("seen and imagined pictures cannot be averaged. Next step: load the parts apart.")
        return super().load(source, **options)

    def read(
        self, source: Source, *, subject: int | str = 1, parts: Any = ("training", "test"), voxels: Any = "all"
    ) -> Recording:
        name = f"Subject{self.number(subject, 5, 'Subject|S|sub-')}"
        wanted = [parts] if isinstance(parts, str) else list(parts)
        for part in wanted:
            one_of("part of Generic Object Decoding", part, tuple(_TYPES))
        root = self.root(source)
        path = next(iter(within(root, f"{name}.h5")), None)
        if path is None:
            raise self.lacks(root, f"{name}.h5")
        table = _Table(path)
        kinds = table.column("DataType")
        keep = np.isin(kinds, [_TYPES[p] for p in wanted])
        if set(np.unique(kinds)) - set(_TYPES.values()) or not keep.any():
            raise DataError(f"{path}: DataType holds {np.unique(kinds)[:5].tolist()}; asked for {wanted} (1, 2, 3).")
        # Each part counts its runs from 1.
        frame = pd.DataFrame({"kind": kinds, "run": table.column("Run"), "row": np.arange(len(kinds))})[keep]
        frame["run"] = frame.groupby(["kind", "run"], sort=False).ngroup() + 1
        frame = frame.sort_values("run", kind="stable")
        at = frame["row"].to_numpy()
        number = table.column("stimulus_id")[at]
        ids = np.array([_id(x, f"{path}, row {r + 1}") for x, r in zip(number, at.tolist(), strict=True)])
        whole = np.flatnonzero(table.flags("VoxelData"))
        regions = {k[4:]: table.flags(k)[whole] for k in table.keys if k.startswith("ROI_")}
        everything = {"all": np.ones(len(whole), dtype=bool)}
        inside = np.flatnonzero(select_voxels(voxels, everything | regions, self.title))
        chosen, mm = whole[inside], table.millimetres(whole)
        labels = {"stimulus": ids, "subject": name, "run": frame["run"].to_numpy(), "voxel": chosen}
        labels |= {"roi": {n: m[inside] for n, m in regions.items()}, "units": "a.u.", "space": "native, 3 mm"}
        # Numbers of the whole set, so that a choice of regions keeps its places.
        if (places := grid(mm)) is not None:
            ijk, affine, shape = places
            labels |= {"ijk": ijk[inside], "affine": affine, "volume_shape": shape}
        names = np.array(list(_TYPES))[frame["kind"].to_numpy(np.int64) - 1].astype(str)

        def read(rows: slice, block: slice, budget: int) -> np.ndarray:
            return table.read(at[rows], chosen[block])

        stimuli, extra = _stimuli(source, root, ids, number, names), {"part": names, "mm": mm[inside]}
        return Recording(labels, read, stimuli, [path], {"parts": wanted}, ("training", "test"), extra, by="run")


def grid(mm: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]] | None:
    """Indices, affine and shape of the smallest upright grid that holds all points, or None where there is none.

    Parameters
    ----------
    mm : array (voxel, 3)
        Millimetres.

    Examples
    --------
    >>> import numpy as np
    >>> ijk, affine, shape = grid(np.array([[-3.0, 0, 9], [3.0, 2, 9], [0.0, 0, 12]]))
    >>> ijk.tolist(), shape, affine[:3, 3].tolist()
    ([[0, 0, 0], [2, 1, 0], [1, 0, 1]], (3, 2, 2), [-3.0, 0.0, 9.0])
    """
    if not len(mm) or not np.isfinite(mm).all():
        return None
    affine, ijk = np.eye(4), np.empty(mm.shape, dtype=np.int64)
    for axis in range(3):
        values = np.unique(mm[:, axis].round(4))
        step = float(np.diff(values).min()) if len(values) > 1 else 1.0
        index = (mm[:, axis] - values[0]) / step
        if step < 0.5 or np.abs(index - index.round()).max() > 0.02:
            return None
        affine[axis, axis], affine[axis, 3] = step, values[0]
        ijk[:, axis] = index.round()
    if len(np.unique(ijk, axis=0)) < len(ijk):
        return None
    a, b, c = (ijk.max(axis=0) + 1).tolist()
    return ijk, affine, (a, b, c)


class _Table:
    """Columns (voxels and labels) of the authors' format, named by rows of metadata."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_hdf5(path, "data set") as handle:
            # Both spellings are written by versions of the authors' tools.
            self.data = next((k for k in ("dataset", "dataSet") if k in handle), "")
            group = next((handle[k] for k in ("metadata", "metaData") if k in handle), None)
            if not self.data or group is None:
                raise DataError(f"{path} holds {sorted(handle)[:6]} (expected dataset and metadata).")
            self.keys = [k.decode() if isinstance(k, bytes) else str(k) for k in group["key"][:]]
            self.meta = np.asarray(group["value"], dtype=np.float64)
            values = handle[self.data]
            if getattr(values, "ndim", 0) != 2 or values.dtype.kind not in "fiu":
                raise DataError(f"{path}: {self.data} is no table of numbers.")
            self.shape, self.dtype = tuple(values.shape), values.dtype
        if self.meta.shape != (len(self.keys), self.shape[1]):
            raise DataError(f"{path}: metadata {self.meta.shape} for {len(self.keys)} keys, {self.shape[1]} columns.")

    def flags(self, key: str) -> np.ndarray:
        one_of(f"key of {self.path.name}", key, self.keys)
        return np.asarray(self.meta[self.keys.index(key)] == 1)

    def column(self, key: str) -> np.ndarray:
        at = np.flatnonzero(self.flags(key))
        if len(at) != 1:
            raise DataError(f"{self.path}: {key} marks {len(at)} columns (expected 1).")
        if key == "stimulus_id" and self.dtype.itemsize < 8:
            raise DataError(
                f"{self.path} holds its picture numbers in {self.dtype}, which cannot tell neighbours apart. Next "
                "step: download the file as published (float64)."
            )
        return self.read(None, at, np.float64)[:, 0]

    def millimetres(self, chosen: np.ndarray) -> np.ndarray:
        axes = [f"voxel_{x}" for x in "xyz"]
        if any(a not in self.keys for a in axes):
            return np.full((len(chosen), 3), np.nan)
        return self.meta[[self.keys.index(a) for a in axes]][:, chosen].T

    def read(self, rows: np.ndarray | None, columns: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
        rows = np.arange(self.shape[0]) if rows is None else rows
        first, left = int(rows.min()), int(columns.min())
        with open_hdf5(self.path, "data set") as handle:
            box = handle[self.data][first : int(rows.max()) + 1, left : int(columns.max()) + 1]
        return box[:, columns - left].astype(dtype)[rows - first]


def _id(number: float, where: str = "a row") -> str:
    """1518878.005958 is picture 5958 of n01518878; binary fractions are rounded to the millionth."""
    if not np.isfinite(number):
        raise DataError(f"{where} has no stimulus_id. Next step: download the file again.")
    wnid, image = divmod(round(float(number) * 1_000_000), 1_000_000)
    return f"n{wnid:08d}_{image}"


def _stimuli(source: Source, root: Path, ids: np.ndarray, number: np.ndarray, part: np.ndarray) -> Stimuli:
    first = pd.DataFrame({"id": ids, "number": number, "part": part}).drop_duplicates("id")
    own = first["id"].to_numpy(dtype=str)
    listed: dict[str, str] = {}
    for path in within(root, "image_*_id.csv"):
        rows = read_table(path, ("0", "1"), header=False, what="list of pictures")
        # As text: 1518878.005958 has more digits than single precision keeps.
        for n, (x, f) in enumerate(zip(numbers(rows, "0", path), rows["1"], strict=True)):
            name = _id(x, f"{path}, row {n + 1}")
            if listed.setdefault(name, str(f)) != str(f):
                raise DataError(f"{path}, row {n + 1}: {name} is {f!r} here and {listed[name]!r} before.")
    files = [listed.get(s, f"{s}.JPEG") for s in own]
    folder = root / "images" if (root / "images").is_dir() else root
    pictures = all_pictures(folder, [Path(f).stem for f in files])
    table = pd.DataFrame({"stimulus_id": first["number"].to_numpy(), "wnid": [s.split("_")[0] for s in own]}, index=own)
    table["image"] = [int(s.split("_")[1]) for s in own]
    # Imagined pictures are those of the test.
    table["split"], table["file"] = np.where(first["part"] == "training", "training", "test"), files
    return Stimuli(own, pictures, None, table, "god", source.manifest.licence)
