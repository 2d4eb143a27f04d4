"""Data sets by name: what each declares, the registry that packages extend, and the one call that loads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar, Protocol

from neuroenc._core.checks import keywords, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import check_readable_file, read_npy
from neuroenc.data._files import GROUP, Manifest, load_manifest, manifest_dir, others, places, resolve
from neuroenc.data._io import load
from neuroenc.data._stimuli import EncodingData
from neuroenc.data.datasets._brainscore import is_assembly
from neuroenc.data.datasets._recording import Recording, collect

#: The data sets that come with neuroenc, in the order in which a folder is looked at.
_SHIPPED = {
    "nsd": "_nsd._load:NSD",
    "nsd-synthetic": "_nsd._side:NSDSynthetic",
    "nsd-imagery": "_nsd._side:NSDImagery",
    "laion-fmri": "_laion_fmri:LAIONfMRI",
    "bold-moments": "_bold_moments:BoldMoments",
    "algonauts2023": "_algonauts2023:Algonauts2023",
    "things-fmri": "_things_fmri:ThingsFMRI",
    "bold5000": "_bold5000:Bold5000",
    "god": "_god:GenericObjectDecoding",
    "glmsingle": "_glmsingle:GLMsingle",
    "bids": "_bids:Bids",
    "v4-cowley2023": "_v4:V4",
    "haxby2001-slice": "_haxby2001:Haxby2001",
    "coco-permissive": "_coco:Permissive",
    "coco-captions-val2017": "_coco:Captions",
    "objects92": "_objects92:Objects92",
    "clip-text-concepts": "_published:ClipTextConcepts",
    "bold5000-weights": "_published:Bold5000Weights",
}
#: Those that are fetched file by file, and have no folder of their own.
_FILES = (
    "v4-cowley2023",
    "haxby2001-slice",
    "coco-permissive",
    "coco-captions-val2017",
    "objects92",
    "clip-text-concepts",
    "bold5000-weights",
)
#: Options of every data set whose `Dataset.read` gives a `Recording`.
SESSIONS: dict[str, Any] = {"repeats": "keep", "zscore": True, "cache": True, "max_memory": None}


@dataclass(frozen=True)
class Found:
    """A data set recognised by its layout.

    ``kind`` is its name (as in ``neuroenc data list``, or "glmsingle", "bids", ...), ``has`` what is there,
    ``missing`` what a complete one would have, ``call`` the Python that loads it.
    """

    kind: str
    title: str
    root: Path
    has: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    call: str = ""

    def __str__(self) -> str:
        lines = [f"{self.title} in {self.root}"]
        lines += [f"  {k:<12} {v}" for k, v in self.has.items()]
        lines += [f"  {'missing':<12} {x}" for x in self.missing]
        return "\n".join([*lines, *([f"  {'load with':<12} {self.call}"] if self.call else [])])


@dataclass(frozen=True)
class Source:
    """Where one data set's files are; nothing is fetched before it is asked for."""

    manifest: Manifest
    root: str | os.PathLike[str] | None = None
    mirror: str | os.PathLike[str] | None = None
    progress: bool = True

    def folder(self, files: Iterable[str] | str | None = None) -> Path:
        """Folder in which the asked files of the manifest (paths or globs; default all) lie and are verified."""
        return resolve(self.manifest, root=self.root, mirror=self.mirror, files=files, progress=self.progress)

    def checksums(self, files: Iterable[str] | str | None = None) -> dict[str, str]:
        """SHA-256 of the asked files, for provenance."""
        return {f.path: f.sha256 for f in self.manifest.select(files)}

    def places(self) -> list[Path]:
        """Folders in which the data set may lie."""
        return places(self.manifest.name, self.mirror, self.root)


class Dataset(Protocol):
    """What a data set declares: its name, what its folder looks like, and how one subject is read.

    Register a subclass in a package of your own, in its pyproject.toml::

        [project.entry-points."neuroenc.datasets"]
        mine = "mypackage.mine:Mine"

    and it is in ``neuroenc data list``, `describe` and `load_dataset`.

    Attributes
    ----------
    name, title : str
    expected : str
        Files that tell it, for messages.
    common : mapping option -> default
        Options that are not `read`'s own: ``SESSIONS`` (repeats, zscore, cache, max_memory) where `read` gives a
        `Recording`.
    manifest : Manifest
        Licence and citation, and files that can be fetched; by default that of the shipped manifests.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.data import Manifest, Stimuli, make_responses
    >>> class Mine(Dataset):
    ...     name, title, expected = "mine", "My experiment", "sub-1.npy"
    ...     manifest = Manifest("mine", "Mine", "Own.", licence="CC0", redistribution="free", citation="Me", access="-")
    ...     def subjects(self, folder):
    ...         return sorted(p.stem for p in folder.glob("sub-*.npy"))
    ...     def read(self, source, *, subject="sub-1"):
    ...         values = np.load(self.root(source) / f"{subject}.npy")
    ...         return EncodingData(make_responses(values, stimulus=["a", "b"]), Stimuli(["a", "b"]))
    >>> Mine().options()
    {'subject': 'sub-1'}
    """

    name: str
    title: str
    expected: str = ""
    common: ClassVar[Mapping[str, Any]] = {}

    @property
    def manifest(self) -> Manifest:
        return load_manifest(manifest_dir() / f"{self.name}.toml")

    def subjects(self, folder: Path) -> list[str]:
        """Names of the subjects that a folder holds; none where it is not this data set's."""
        return []

    def missing(self, folder: Path) -> list[str]:
        """What a complete data set would have beside what is there."""
        return []

    def recognise(self, folder: Path) -> Found | None:
        """What is there, where the folder itself is this data set's."""
        names = self.subjects(folder)
        if not names:
            return None
        call = f'load_dataset("{self.name}", root="{folder}", subject="{names[0]}")'
        has = {"subjects": ", ".join(names)}
        return Found(self.name, self.title, folder, has, tuple(self.missing(folder)), call)

    def read(self, source: Source, *args: Any, **options: Any) -> Recording | EncodingData:
        """One subject: labels with a function that reads values (`Recording`), or everything in memory."""
        ...

    def options(self) -> dict[str, Any]:
        """Legal options with their defaults: the keywords of `read`, and ``common``."""
        return keywords(self.read) | dict(self.common)

    def load(self, source: Source, **options: Any) -> EncodingData:
        """`read` with options, and the values of a `Recording` collected."""
        found = self.read(source, **{k: v for k, v in options.items() if k not in self.common})
        if isinstance(found, EncodingData):
            return found
        found.labels = {"source": self.name, "licence": source.manifest.licence, **found.labels}
        found.settings = {"data": self.name, "subject": str(found.labels.get("subject", "")), **found.settings}
        shared = {k: options.get(k, default) for k, default in self.common.items()}
        return collect(found, **shared, progress=source.progress)

    def root(self, source: Source) -> Path:
        """First of ``root``, the data folder and the mirror that is the data set's, itself or one folder below."""
        folders = source.places()
        for folder in folders:
            below = sorted(x for x in folder.iterdir() if x.is_dir()) if folder.is_dir() else []
            for candidate in (folder, *below):
                if found := self.recognise(candidate):
                    return found.root
        raise DataError(
            f"{self.name} is not in {' nor '.join(map(str, folders))}: {like(folders[0])} Expected: "
            f"{self.expected}. {source.manifest.access} "
            f"Next step: load_dataset({self.name!r}, root='FOLDER'), or `neuroenc data describe FOLDER`."
        )

    def lacks(self, folder: Path, what: str) -> DataError:
        """The error for a subject's files that are not there."""
        there = f"it has {', '.join(self.subjects(folder))}"
        return DataError(f"{folder} lacks {what}; {there}. Expected: {self.expected}.")

    def number(self, subject: Any, n: int, pattern: str) -> int:
        """Number of a subject, written as a number or in the data set's own way."""
        match = re.fullmatch(rf"(?:{pattern})?0*([1-9]\d*)", str(subject).strip(), flags=re.IGNORECASE)
        if not match or int(match[1]) > n:
            raise ConfigError(f"subject={subject!r} is none of {self.title}'s; legal are 1 to {n}.")
        return int(match[1])


def layouts() -> dict[str, Dataset]:
    """Every data set by name: those of neuroenc, then those of other packages."""
    return others() | {name: _shipped(name) for name in _SHIPPED}


def _shipped(name: str) -> Dataset:
    # By name, so that this module imports none of those that import it.
    made: Dataset = EntryPoint(name, f"neuroenc.data.datasets.{_SHIPPED[name]}", GROUP).load()()
    return made


def known_layouts() -> list[str]:
    """Titles of the data sets that `neuroenc.data.describe` recognises.

    >>> known_layouts()[:2]
    ['Natural Scenes Dataset', 'NSD-synthetic']
    """
    return [x.title for x in layouts().values() if x.name not in _FILES]


def recognise(folder: Path) -> list[Found]:
    """Every known layout that this folder itself has."""
    return [found for layout in layouts().values() if (found := layout.recognise(folder)) is not None]


def like(folder: Path) -> str:
    """What a folder holds, and which known layout that is; for messages."""
    if not folder.is_dir():
        return "it does not exist."
    held = sorted(x.name for x in folder.iterdir())
    shown = ", ".join(held[:6]) + (f", ... ({len(held)} in all)" if len(held) > 6 else "")
    names = [f.title for f in recognise(folder)]
    return f"it holds {shown or 'nothing'}." + (f" It looks like {' or '.join(names)}." if names else "")


def load_dataset(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    mirror: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> EncodingData:
    """Load a data set by name; files of its manifest are verified, and fetched where they are missing.

    ``v4-cowley2023``
        ``session="201025"``: one of the eight listed, or any other in ``root``; responses in stimulus form (spike
        count), images (n, 112, 112, 3).
    ``haxby2001-slice``
        ``image="1slice"`` or ``"25mm"``, ``mask=None`` (automatic), ``"all"`` or, at 25 mm, ``"brain"``, ``"gray"``,
        ``"white"``, ``"hoc"``, ``"vt"``; ``delay=2.5`` seconds. Block responses in presentation form, z-scored per run.
    ``coco-permissive``, ``coco-captions-val2017``, ``objects92``
        Stimuli only; ``objects92`` has dissimilarity matrices in ``extra``.
    ``clip-text-concepts``, ``bold5000-weights``
        Published ``vectors`` of concept names by CLIP's text tower, and ``weights`` of real voxels, in ``extra``.
    ``nsd``
        Read from ``root`` in its official folders; ``subject=1`` and the other options of `neuroenc.data.nsd`.
    ``nsd-synthetic``, ``nsd-imagery``
        Read from the same folders; ``subject=1``, ``space``, ``betas``, ``voxels``; of imagery ``task`` and ``sets``.
    ``bold5000``, ``things-fmri``, ``laion-fmri``, ``bold-moments``, ``algonauts2023``, ``god``
        Read from ``root`` as published; ``subject=1``, ``voxels``, ``repeats``, ``zscore``, ``max_memory``, ...; ids of
        the published splits in ``extra["splits"]``. `neuroenc.data.describe` says what a folder holds.

    Data sets of other packages (`Dataset`) load in the same way.

    Parameters
    ----------
    name
        Data set, as in ``neuroenc data list``.
    root
        The data set's own folder, where you keep it; default: data folder, mirror, download, in this order.
    mirror
        Folder laid out as ``MIRROR/NAME/path``, used in place; default NEUROENC_MIRROR.
    progress
        Show a bar while files are fetched.
    **options
        The data set's own, as above and in ``neuroenc data show NAME``.

    Raises
    ------
    ConfigError
        Unknown data set, option or option value; the message names the nearest.
    ChecksumError, DataError
        A file is wrong or cannot be had.

    Examples
    --------
    >>> from neuroenc.data import load_dataset
    >>> load_dataset("haxby2001-slice", imagee="25mm")
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.ConfigError: unknown option of haxby2001-slice 'imagee'; did you mean 'image'? ...
    """
    manifest = load_manifest(name)
    legal = loader_options(name)
    for option in options:
        one_of(f"option of {name}", option, legal)
    return _dataset(name).load(Source(manifest, root, mirror, progress), **options)


def loader_options(name: str | Manifest) -> dict[str, Any]:
    """Options of a data set with their defaults.

    Examples
    --------
    >>> loader_options("v4-cowley2023")
    {'session': '201025'}
    """
    return _dataset(name.name if isinstance(name, Manifest) else name).options()


def _dataset(name: str) -> Dataset:
    return _shipped(name) if name in _SHIPPED else layouts()[load_manifest(name).name]


def describe(path: str | os.PathLike[str]) -> list[Found]:
    """What neuroenc recognises at a path, best first.

    Parameters
    ----------
    path
        A folder (of NSD and its side experiments, LAION-fMRI, BOLD Moments, BOLD5000, THINGS-fMRI, Algonauts 2023,
        Generic Object Decoding, GLMsingle, BIDS with fMRIPrep), one around it, or a file (NIfTI, ``.npy``, HDF5, an
        assembly of Brain-Score, or netCDF and zarr written by neuroenc).

    Returns
    -------
    list of Found
        ``kind, title, root, has, missing, call``; ``print`` shows it. Empty where nothing is known.

    Examples
    --------
    >>> import tempfile
    >>> from neuroenc.data.simulate import god_tree
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = god_tree(folder)
    ...     [found.kind for found in describe(folder)]
    ['god']
    """
    target = Path(path).expanduser()
    if target.is_file():
        found = _file(target)
        return [found] if found else []
    if os.path.lexists(target) and not target.is_dir():
        check_readable_file(target, "path")
    if not target.is_dir():
        near = sorted(x.name for x in target.parent.iterdir())[:6] if target.parent.is_dir() else []
        raise DataError(f"{target} does not exist; {target.parent} holds {near}.")
    if not os.access(target, os.R_OK | os.X_OK):
        raise DataError(f"{target} may not be read by you. Next step: change its permissions.")
    here = recognise(target)
    folders = sorted(x for x in target.iterdir() if x.is_dir() and os.access(x, os.R_OK | os.X_OK))
    below = [f for folder in folders[:100] for f in recognise(folder)]
    # A folder of several data sets is none of them, whatever its folders hold.
    return here if {f.kind for f in below} <= {f.kind for f in here} else below


def _file(path: Path) -> Found | None:
    name = path.name
    if name.endswith((".nii", ".nii.gz")):
        from neuroenc.data._images import open_image

        image = open_image(path, "image")
        has, call = {"shape": "x".join(str(x) for x in image.shape)}, f'load_masked("{path}", mask="MASK.nii.gz")'
        if len(image.shape) == 4:
            return Found("nifti", "NIfTI, betas or BOLD (4-D)", path, has, (), call)
        return Found("nifti", "NIfTI, map or mask (3-D)", path, has)
    if path.suffix == ".npy":
        array = read_npy(path)
        has = {"array": f"{array.dtype} {array.shape}"}
        return Found("npy", "NumPy array", path, has, (), f'make_responses(np.load("{path}"), stimulus=IDS)')
    if is_assembly(path):
        return Found("brainscore", "Brain-Score assembly", path, {}, (), f'read_assembly("{path}", "STIMULI.csv")')
    if path.suffix == ".nc":
        load(path, chunks={})
        return Found("neuroenc", "netCDF", path, {}, (), f'load("{path}")')
    return None
