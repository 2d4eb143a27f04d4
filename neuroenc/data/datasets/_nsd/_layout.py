"""Where the Natural Scenes Dataset keeps what: official names of folders and files, and the places of voxels."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.data._images import check_affine, image_values, open_image
from neuroenc.data._volumes import placed

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
            raise DataError(f"{folder} lacks {' and '.join(missing)}: {found}. Next step: the folder that holds them.")
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
            f"{self.betas_folder} has no {wanted}.{{{','.join(legal if ending == 'auto' else (ending,))}}}; it holds "
            f"{names}."
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
                    f"{folder} has none of {', '.join(names)}, which tell the volume's place. Next step: download one."
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
            f"no map tells the number of vertices of {self.name} in {self.space}: download {{lh,rh}}.ncsnr.mgh."
        )

    def read_map(self, name: str, *, where: str = "roi") -> np.ndarray | None:
        """A map as flat array (n_places,), or None where its file is absent.

        ``where``: "roi" (labels), "betas" (beside the betas, as ncsnr), or "func" (localiser and other maps).
        On fsaverage, labels that exist on the subject's own surface only are carried over by the data set's
        nearest-vertex table ``white-to-fsaverage``.
        """
        if self.kind == "volume":
            folder = {
                "roi": self.ppdata / self.space / "roi",
                "betas": self.betas_folder,
                "func": self.ppdata / self.space,
            }[where]
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
        for folder in (self.label_folder(), self.label_folder("fsaverage")):
            path = folder / f"{name}.mgz.ctab"
            if path.is_file():
                return path
        return None


def _subject_number(subject: int | str) -> int:
    match = re.fullmatch(r"(?:subj|sub-?|s)?0*([1-8])", str(subject).strip().lower())
    if not match:
        raise ConfigError(f"subject={subject!r} is not one of NSD's eight; write 1 to 8 or 'subj01' to 'subj08'.")
    return int(match[1])
