"""Where the Natural Scenes Dataset keeps what: folders, files, places of voxels, and betas of single trials."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import open_hdf5
from neuroenc.data._images import check_affine, forward, image_values, open_image
from neuroenc.data._volumes import placed
from neuroenc.data.datasets._recording import frames, unpacked

#: Short names of the three versions of the single-trial betas.
BETAS = {"b1": "betas_assumehrf", "b2": "betas_fithrf", "b3": "betas_fithrf_GLMdenoise_RR"}
SPACES = ("func1pt8mm", "func1mm", "fsaverage", "nativesurface")
HEMIS = {"lh": "L", "rh": "R"}
_SESSION = re.compile(r"(?:(?P<hemi>[lr]h)\.)?betas_session(?P<number>\d{2})\.(?P<ending>nii\.gz|hdf5|mgh|mgz)")
# Fast access to single voxels first; a whole volume has to be unpacked for the others.
_ENDINGS = {"volume": ("hdf5", "nii.gz"), "surface": ("hdf5", "mgh", "mgz")}


def surface_values(path: Path, what: str) -> np.ndarray:
    """One value per vertex (or (vertex, n)) of a FreeSurfer overlay."""
    values = np.asarray(image_values(open_image(path, what, surface=True), what))
    return values.reshape(len(values), -1) if values.size > len(values) else values.reshape(-1)


@dataclass(frozen=True)
class Layout:
    """One subject of a tree in the official layout, in one space and one version of the betas.

    Voxels (or vertices) have flat numbers: C order of the volume, or left then right hemisphere.
    """

    root: Path
    subject: int
    space: str = "func1pt8mm"
    betas: str = "betas_fithrf_GLMdenoise_RR"
    name: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"subj{self.subject:02d}")

    @classmethod
    def open(
        cls, root: str | os.PathLike[str], subject: int | str, space: str = "func1pt8mm", betas: str = "b3"
    ) -> Layout:
        """Check the arguments and that the folders are there."""
        number = _subject_number(subject)
        one_of("space of NSD", space, SPACES)
        one_of("version of NSD betas", betas, [*BETAS, *BETAS.values()])
        folder = Path(root).expanduser()
        missing = [x for x in ("nsddata", "nsddata_betas") if not (folder / x).is_dir()]
        if missing:
            held = sorted(x.name for x in folder.iterdir())[:8] if folder.is_dir() else []
            found = f"it holds {held}" if folder.is_dir() else "it does not exist"
            raise DataError(
                f"{folder} lacks {' and '.join(missing)}: {found}. "
                "Next step: give the folder that holds nsddata, nsddata_betas and nsddata_stimuli, as downloaded from "
                "the data set's bucket."
            )
        layout = cls(folder, number, space, BETAS.get(betas, betas))
        if not layout.betas_folder.is_dir():
            place = folder / "nsddata_betas" / "ppdata"
            have = sorted(str(x.relative_to(place)) for x in place.glob("subj*/*/betas_*"))
            raise DataError(unknown_name("folder of betas", layout.betas_folder.relative_to(place).as_posix(), have))
        return layout

    def with_subject(self, subject: int) -> Layout:
        return Layout(self.root, subject, self.space, self.betas)

    @property
    def kind(self) -> str:
        return "volume" if self.space.startswith("func") else "surface"

    @property
    def betas_folder(self) -> Path:
        return self.root / "nsddata_betas" / "ppdata" / self.name / self.space / self.betas

    @property
    def ppdata(self) -> Path:
        return self.root / "nsddata" / "ppdata" / self.name

    @property
    def experiment(self) -> Path:
        return self.root / "nsddata" / "experiments" / "nsd"

    @property
    def stimuli(self) -> Path:
        return self.root / "nsddata_stimuli" / "stimuli" / "nsd"

    def label_folder(self, subject: str | None = None) -> Path:
        return self.root / "nsddata" / "freesurfer" / (subject or self.name) / "label"

    def sessions(self, ending: str = "auto") -> tuple[str, dict[int, tuple[Path, ...]]]:
        """File ending, and the beta files of every session that is there (two of a surface)."""
        legal = _ENDINGS[self.kind]
        one_of(f"file format of betas in {self.space}", ending, ("auto", *legal))
        found: dict[str, dict[int, dict[str, Path]]] = {}
        for path in sorted(self.betas_folder.iterdir()):
            match = _SESSION.fullmatch(path.name)
            if match:
                files = found.setdefault(match["ending"], {}).setdefault(int(match["number"]), {})
                files[match["hemi"] or ""] = path
        keys = tuple(HEMIS) if self.kind == "surface" else ("",)
        for name in legal if ending == "auto" else (ending,):
            whole = {n: tuple(f[k] for k in keys) for n, f in found.get(name, {}).items() if set(keys) <= set(f)}
            if whole:
                return name, dict(sorted(whole.items()))
        names = sorted(x.name for x in self.betas_folder.iterdir())[:6]
        wanted = "{lh,rh}.betas_sessionNN" if self.kind == "surface" else "betas_sessionNN"
        raise DataError(
            f"{self.betas_folder} has no {wanted}.{{{','.join(legal if ending == 'auto' else (ending,))}}}; it "
            f"holds {names}. Next step: download the sessions, or choose another space, version or format."
        )

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(x, y, z) of the volume, or the numbers of vertices of both hemispheres."""
        if self.kind == "volume":
            return tuple(int(x) for x in self._reference.shape[:3])
        return tuple(len(surface_values(p, "surface map")) for p in self._surface_reference())

    @cached_property
    def affine(self) -> np.ndarray | None:
        return np.asarray(self._reference.affine, dtype=float) if self.kind == "volume" else None

    @cached_property
    def n_places(self) -> int:
        return int(np.prod(self.shape)) if self.kind == "volume" else int(sum(self.shape))

    @cached_property
    def _reference(self) -> Any:
        folder = self.ppdata / self.space
        names = ["brainmask.nii.gz", "mean.nii.gz", "roi/nsdgeneral.nii.gz"]
        path = next((folder / x for x in names if (folder / x).is_file()), None)
        if path is None:
            files = sorted((folder / "roi").glob("*.nii.gz")) + sorted(self.betas_folder.glob("*.nii.gz"))
            if not files:
                raise DataError(
                    f"{folder} has none of {', '.join(names)}, which tell the volume's place. "
                    f"Next step: download nsddata/ppdata/{self.name}/{self.space}/brainmask.nii.gz."
                )
            path = files[0]
        return open_image(path, "reference volume")

    def _surface_reference(self) -> list[Path]:
        folders = [self.betas_folder, self.label_folder("fsaverage" if self.space == "fsaverage" else None)]
        for folder in folders:
            for left in sorted(folder.glob("lh.*.mg[hz]")) if folder.is_dir() else ():
                right = left.with_name("rh" + left.name[2:])
                if right.is_file() and "betas" not in left.name:
                    return [left, right]
        ending, files = self.sessions()
        if ending != "hdf5":
            return list(next(iter(files.values())))
        raise DataError(
            f"no map tells the number of vertices of {self.name} in {self.space}. "
            f"Next step: download {self.betas_folder.name}/{{lh,rh}}.ncsnr.mgh or the labels of "
            "nsddata/freesurfer."
        )

    def read_map(self, name: str, *, where: str = "roi") -> np.ndarray | None:
        """A map as flat array (n_places,), or None where its file is absent.

        ``where``: "roi" (labels), "betas" (beside the betas, as ncsnr), or "func" (localiser and other maps).
        On fsaverage, labels that exist on the subject's own surface only are carried over by the data set's
        nearest-vertex table ``white-to-fsaverage``.
        """
        if self.kind == "volume":
            here = self.ppdata / self.space
            folder = {"roi": here / "roi", "betas": self.betas_folder, "func": here}[where]
            path = folder / f"{name}.nii.gz"
            if not path.is_file():
                return None
            image = open_image(path, name)
            values = np.asarray(image_values(image, name))
            check_affine(image, self._reference, names=(str(path), f"the other volumes of {self.space}"))
            return values.reshape(-1)
        stem = name.replace("floc_", "floc") if where == "func" else name
        parts = []
        for hemi, n in zip(HEMIS, self.shape, strict=True):
            part = self._read_surface(hemi, stem, where)
            if part is None:
                return None
            if part.shape[:1] != (n,):
                raise DataError(f"{hemi}.{stem} has {len(part)} vertices, the surfaces of {self.space} {self.shape}.")
            parts.append(part)
        return np.concatenate(parts)

    def _read_surface(self, hemi: str, stem: str, where: str) -> np.ndarray | None:
        own = "fsaverage" if self.space == "fsaverage" else None
        folder = self.betas_folder if where == "betas" else self.label_folder(own)
        for ending in ("mgz", "mgh"):
            path = folder / f"{hemi}.{stem}.{ending}"
            if path.is_file():
                return surface_values(path, stem)
        table = self.ppdata / "transforms" / f"{hemi}.white-to-fsaverage.mgz"
        native = self.label_folder() / f"{hemi}.{stem}.mgz"
        if own and where != "betas" and table.is_file() and native.is_file():
            return surface_values(native, stem)[surface_values(table, table.name).astype(np.int64) - 1]
        return None

    def coordinates(self, places: np.ndarray) -> dict[str, Any]:
        """Arguments of `make_responses` that place the flat numbers ``places``."""
        if self.kind == "volume":
            return placed(places, self.shape, self.affine)
        right = places >= self.shape[0]
        return {"vertex": places - right * self.shape[0], "hemi": np.where(right, "R", "L")}

    def colour_table(self, name: str) -> Path | None:
        paths = (self.label_folder(subject) / f"{name}.mgz.ctab" for subject in (None, "fsaverage"))
        return next((path for path in paths if path.is_file()), None)


def _subject_number(subject: int | str) -> int:
    match = re.fullmatch(r"(?:subj|sub-?|s)?0*([1-8])", str(subject).strip().lower())
    if not match:
        raise ConfigError(f"subject={subject!r} is not one of NSD's eight; write 1 to 8 or 'subj01' to 'subj08'.")
    return int(match[1])


#: Integer files hold percent signal change times this.
SCALE = 300.0


def n_trials(files: tuple[Path, ...]) -> int:
    """Trials that a session's first file holds."""
    with _opened(files[0], 2**20) as values:
        return int(values.shape[0] if files[0].suffix == ".hdf5" else values.shape[-1])


def read_session(layout: Layout, files: tuple[Path, ...], places: np.ndarray, budget: int) -> np.ndarray:
    """Betas of the flat numbers ``places`` (ascending), float32 (trial, place), in percent signal change.

    Besides the result at most about ``budget`` bytes are held; zeros and NaN of the files are kept.
    """
    if layout.kind == "volume":
        with _opened(files[0], budget) as values:
            _check_shape(values, files[0], layout.shape)
            if files[0].suffix == ".hdf5":
                return _from_hdf5_volume(values, np.stack(np.unravel_index(places, layout.shape), 1), budget)
            return _from_frames(values, places, budget)
    parts, start = [], 0
    for path, n in zip(files, layout.shape, strict=True):
        own = places[(places >= start) & (places < start + n)] - start
        start += n
        with _opened(path, budget) as values:
            _check_shape(values, path, (n,))
            take = _from_hdf5_table if path.suffix == ".hdf5" else _from_frames
            parts.append(take(values, own, budget))
    return np.concatenate(parts, axis=1)


def unpacked_session(layout: Layout, path: Path, places: np.ndarray, budget: int) -> np.ndarray:
    """Betas (trial, place) of one packed volume, for when blocks of its voxels are taken one by one."""
    with _opened(path, budget) as values:
        _check_shape(values, path, layout.shape)
    return unpacked(path, places, budget, _percent)


@contextmanager
def _opened(path: Path, budget: int) -> Iterator[Any]:
    """An HDF5 data set (trial, z, y, x) or (trial, vertex), or nibabel's lazy array (x, y, z, trial)."""
    if path.suffix == ".hdf5":
        with open_hdf5(path, "betas") as handle:
            _limit_index(handle, budget)
            found = handle.get("betas")
            if not hasattr(found, "dtype") or found.dtype.kind not in "iuf":
                raise DataError(f"{path} has no data set 'betas' of numbers; it holds {sorted(handle)[:5]}.")
            yield found
    else:
        with forward(path, "betas") as image:
            yield image.dataobj


def _limit_index(handle: Any, budget: int) -> None:
    """The index of half a million chunks would else be kept in memory, up to 32 MB of it."""
    config = handle.id.get_mdc_config()
    size = int(np.clip(budget // 4, 2**20, config.max_size))
    config.set_initial_size, config.initial_size = True, size
    config.min_size, config.max_size = min(config.min_size, size), size
    handle.id.set_mdc_config(config)


def _check_shape(values: Any, path: Path, shape: tuple[int, ...]) -> None:
    hdf5 = path.suffix == ".hdf5"
    found = tuple(values.shape[1:])[::-1] if hdf5 else tuple(x for x in values.shape[:-1])
    found = found[:1] if len(shape) == 1 and set(found[1:]) <= {1} else found
    if found != tuple(shape):
        raise DataError(
            f"{path} holds places of shape {found}, not {tuple(shape)}: another subject or space, or turned axes. "
            "Next step: check subject and space."
        )


def _percent(block: np.ndarray) -> np.ndarray:
    """Integers are scaled; decimal files are in percent already."""
    return block.astype(np.float32) / np.float32(SCALE if block.dtype.kind in "iu" else 1)


def _from_frames(values: Any, index: np.ndarray, budget: int) -> np.ndarray:
    """Frames (place..., trial) stored trial after trial, as in NIfTI and MGH files."""
    out = np.empty((int(values.shape[-1]), len(index)), dtype=np.float32)
    start = 0
    for rows in frames(values, index, budget, _percent):
        out[start : start + len(rows)] = rows
        start += len(rows)
    return out


def _from_hdf5_table(values: Any, index: np.ndarray, budget: int) -> np.ndarray:
    """(trial, vertex): the span of the wanted vertices, column block by column block."""
    n = int(values.shape[0])
    out = np.empty((n, len(index)), dtype=np.float32)
    if not len(index):
        return out
    chunk = int(values.chunks[1]) if values.chunks else 1
    width = max(chunk, budget // max(1, n * 8) // chunk * chunk)
    first = int(index[0]) // chunk * chunk
    for start in range(first, int(index[-1]) + 1, width):
        low, high = np.searchsorted(index, [start, start + width])
        if low == high:
            continue
        left, right = int(index[low]), int(index[high - 1]) + 1
        out[:, low:high] = _percent(values[:, left:right][:, index[low:high] - left])
    return out


def _from_hdf5_volume(values: Any, ijk: np.ndarray, budget: int) -> np.ndarray:
    """(trial, z, y, x): boxes of one z (or chunk of z), as many rows of y as the budget allows."""
    n = int(values.shape[0])
    out = np.empty((n, len(ijk)), dtype=np.float32)
    dz, dy, dx = (int(c) for c in values.chunks[1:]) if values.chunks else (1, 1, 1)
    # Where each voxel has a chunk of its own, rows of a box that nobody asked for cost as much as wanted ones.
    per_row = n * 8 * dz * dy * max(dx, int(values.shape[3]))
    rows = dy if values.chunks and dx == 1 else max(1, budget // max(1, per_row)) * dy
    k, j = ijk[:, 2] // dz, ijk[:, 1] // rows
    order = np.lexsort((j, k))
    edges = np.flatnonzero(np.diff(k[order]) | np.diff(j[order])) + 1
    for group in np.split(order, edges) if len(order) else ():
        x, y, z = ijk[group].T
        for part in _spans(x, max(dx, budget // max(1, n * 8 * dz * rows))):
            x0, y0, z0 = x[part].min(), y[part].min(), z[part].min()
            box = values[:, z0 : z[part].max() + 1, y0 : y[part].max() + 1, x0 : x[part].max() + 1]
            out[:, group[part]] = _percent(box[:, z[part] - z0, y[part] - y0, x[part] - x0])
    return out


def _spans(x: np.ndarray, width: int) -> list[np.ndarray]:
    """Positions grouped so that no group spans more than ``width`` values."""
    if not x.size or x.max() - x.min() < width:
        return [np.arange(len(x))]
    number = (x - x.min()) // width
    return [np.flatnonzero(number == g) for g in np.unique(number)]
