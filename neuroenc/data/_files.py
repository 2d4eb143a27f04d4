"""Files of a data set: what its manifest lists, and how they are found, copied, downloaded and verified."""

from __future__ import annotations

import fnmatch
import os
import shutil
import tomllib
import warnings
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, StrictInt, ValidationError
from pydantic.dataclasses import dataclass

from neuroenc._core.errors import ChecksumError, ConfigError, DataError, nearest_names, unknown_name
from neuroenc._core.files import atomic_path, check_readable_file, output_folder, remove_leftovers, sha256_file
from neuroenc._core.paths import cache_dir
from neuroenc._core.progress import progress as progress_bar

if TYPE_CHECKING:
    import pandas as pd

#: Entry points by which other packages add data sets.
GROUP = "neuroenc.datasets"
_STRICT = ConfigDict(extra="forbid")


def _inside(path: str) -> str:
    """A relative path that stays below the data set's folder, on every system."""
    if not path or "\\" in path or ":" in path or path.startswith(("/", "~")) or ".." in PurePosixPath(path).parts:
        raise ValueError("expected a relative path with '/' that stays inside the data folder, such as 'images/1.jpg'")
    return path


Text = Annotated[str, Field(pattern=r"\S")]


@dataclass(frozen=True, config=_STRICT)
class ManifestFile:
    """One file: relative path, address (``""`` where only a mirror has it), SHA-256 and size in bytes."""

    path: Annotated[str, AfterValidator(_inside)]
    url: Annotated[str, Field(pattern=r"^(https?://[!-~]+)?$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[StrictInt, Field(ge=0)]


@dataclass(frozen=True, config=_STRICT)
class Manifest:
    """A data set's files, licence and citation, as written in ``data_manifests/NAME.toml``.

    Examples
    --------
    >>> tiny = Manifest("tiny", "Tiny", "Two rows.", licence="CC0", redistribution="free", citation="Own (2024)")
    >>> tiny.size, tiny.files
    (0, ())
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$")]
    title: Text
    description: Text
    licence: Text
    redistribution: Text
    citation: Text
    files: tuple[ManifestFile, ...] = ()
    doi: str = ""
    homepage: str = ""
    #: How files are had that are under an agreement with each user, and so are not listed.
    access: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(f.size for f in self.files)

    def select(self, patterns: Iterable[str] | str | None = None) -> tuple[ManifestFile, ...]:
        """Files whose path equals a pattern or matches it as a shell glob (``*`` also crosses ``/``).

        Raises
        ------
        ConfigError
            A pattern matches no file; the message names the nearest paths.
        """
        if patterns is None:
            return self.files
        wanted: set[str] = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            hits = {f.path for f in self.files if fnmatch.fnmatchcase(f.path, pattern)}
            if not hits:
                step = f"Next step: `neuroenc data show {self.name}` lists the files."
                raise ConfigError(unknown_name(f"file of {self.name}", pattern, [f.path for f in self.files], step))
            wanted |= hits
        return tuple(f for f in self.files if f.path in wanted)


def manifest_dir() -> Path:
    """Folder of the manifests: inside an installed package, or at the root of a checkout.

    Examples
    --------
    >>> (manifest_dir() / "objects92.toml").is_file()
    True
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "_manifests", here.parents[2] / "data_manifests"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"no manifests beside {here}: the installation is incomplete. Next step: reinstall neuroenc.")


def others() -> dict[str, Any]:
    """Data sets of other packages by name; one that cannot be imported is left out with a warning."""
    found = {}
    for entry in entry_points(group=GROUP):
        try:
            found[entry.name] = entry.load()()
        except Exception as error:
            # Another package's mistake must not take the other data sets away.
            warnings.warn(f"the data set {entry.name!r} ({entry.value}) cannot be used: {error!r}.", stacklevel=3)
    return found


def list_manifests() -> list[Manifest]:
    """All manifests, sorted by name: those of neuroenc, and of the data sets of other packages.

    Examples
    --------
    >>> [m.name for m in list_manifests()][:2]
    ['algonauts2023', 'atlases-fsaverage']
    """
    shipped = [load_manifest(p) for p in manifest_dir().glob("*.toml")]
    return sorted([*shipped, *(d.manifest for d in others().values())], key=lambda m: m.name)


def load_manifest(source: str | Path) -> Manifest:
    """Read one manifest.

    Parameters
    ----------
    source
        Name of a data set, or the path of a TOML file with the fields of `Manifest` and, in a table ``[[files]]``,
        ``path``, ``url`` (may be empty), ``sha256`` and ``size``. With ``access``, which says how the files are had,
        there may be none.

    Raises
    ------
    ConfigError
        There is no such data set (the message names the nearest); or the file cannot be read, is not TOML, or a field
        is unknown, missing or malformed.

    Examples
    --------
    >>> load_manifest("objects92").licence
    'MIT (repository of rsatoolbox)'
    """
    if isinstance(source, str) and not source.endswith(".toml"):
        shipped = {p.stem: p for p in sorted(manifest_dir().glob("*.toml"))}
        if source not in shipped:
            more = others()
            if source in more:
                manifest: Manifest = more[source].manifest
                return manifest
            step = "Next step: `neuroenc data list`."
            raise ConfigError(unknown_name("data set", source, [*shipped, *more], step))
        source = shipped[source]
    path = check_readable_file(source, "manifest")
    try:
        return Manifest(**tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(x) for x in first["loc"])
        near = nearest_names(str(first["loc"][-1]), [*vars(Manifest)["__dataclass_fields__"], "path", "url", "sha256"])
        hint = f"; nearest: {', '.join(near)}" if first["type"] == "unexpected_keyword_argument" and near else ""
        raise ConfigError(f"{path}: {where} = {first['input']!r:.80}: {first['msg']}{hint}.") from error
    except (ValueError, RecursionError, TypeError) as error:
        raise ConfigError(f"{path} is not a readable TOML file: {error}.") from error


StrPath = str | os.PathLike[str]
#: Seconds to connect, and between two pieces; attempts after the first.
_TIMEOUT, _RETRIES = (5, 60), 2


def data_dir(dest: StrPath | None = None) -> Path:
    """Folder that holds one folder per data set: ``dest``, else NEUROENC_DATA, else the cache folder's ``data``."""
    value = dest or os.environ.get("NEUROENC_DATA")
    return Path(value).expanduser() if value else cache_dir() / "data"


def mirror_dir(mirror: StrPath | None = None) -> Path | None:
    """Folder laid out as ``MIRROR/NAME/path`` that is tried before the network, or None."""
    value = mirror or os.environ.get("NEUROENC_MIRROR")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        origin = "given as mirror" if mirror else "of the environment variable NEUROENC_MIRROR"
        raise DataError(f"the folder {folder} {origin} does not exist. Next step: correct it, or leave it out.")
    return folder


def places(name: str, mirror: StrPath | None = None, root: StrPath | None = None) -> list[Path]:
    """Folders in which a data set may lie: ``root`` and nothing else, or the data folder's and the mirror's."""
    if root is not None:
        return [Path(root).expanduser()]
    source = mirror_dir(mirror)
    return [data_dir() / name, *([source / name] if source is not None else [])]


def fetch(
    name: str | Manifest,
    dest: StrPath | None = None,
    mirror: StrPath | None = None,
    files: Iterable[str] | str | None = None,
    progress: bool = True,
) -> Path:
    """Bring a data set's files to ``DEST/NAME``: kept if right, else copied from a mirror, else downloaded (pooch).

    Every file is checked before it takes its place; a call that was killed can be given again.

    Parameters
    ----------
    name
        Data set, as in ``neuroenc data list``.
    dest
        Folder of all data sets; default NEUROENC_DATA, else ``data`` in the cache folder.
    mirror
        Folder laid out as ``MIRROR/NAME/path``, tried first; default NEUROENC_MIRROR.
    files
        Paths or shell globs of the manifest; default all.
    progress
        Show a bar.

    Returns
    -------
    Path
        The data set's folder. It can itself serve as (part of) a mirror.

    Raises
    ------
    ChecksumError
        A mirror's or server's file is not what the manifest promises; nothing of it is kept.
    DataError
        No network, no public address, or a disk that cannot be written.
    ConfigError
        Unknown data set or file; the message names the nearest.
    """
    manifest = name if isinstance(name, Manifest) else load_manifest(name)
    if not manifest.files:
        raise DataError(
            f"{manifest.name} cannot be fetched: {manifest.access} "
            f"Next step: tell the loader where it is, load_dataset({manifest.name!r}, root='FOLDER')."
        )
    root, source = data_dir(dest) / manifest.name, mirror_dir(mirror)
    missing = [f for f in manifest.select(files) if _problem(root, f)]
    if missing:
        _check_reachable(manifest, missing, source)
        output_folder(root)
        size = sum(f.size for f in missing)
        bar = progress_bar(desc=manifest.name, total=size, show=progress, unit="B", unit_scale=True, unit_divisor=1024)
        with bar:
            for file in missing:
                with atomic_path(root / file.path) as temporary:
                    origin = source / manifest.name / file.path if source is not None else None
                    if origin is not None and origin.is_file():
                        # The copy is hashed, not the original: it is what stays.
                        shutil.copyfile(origin, temporary)
                        if problem := _problem(temporary.parent, file, temporary):
                            raise _mismatch(manifest, f"the mirror {origin}", file, problem)
                    else:
                        _download(manifest, file, temporary)
                bar.update(file.size)
    remove_leftovers(root)
    return root


def _download(manifest: Manifest, file: ManifestFile, target: Path) -> None:
    """One file by pooch, which retries and checks the content before it gives the name ``target``."""
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    known = {"registry": {target.name: f"sha256:{file.sha256}"}, "urls": {target.name: file.url}}
    one = pooch.create(target.parent, base_url="", retry_if_failed=_RETRIES, **known)
    try:
        one.fetch(target.name, downloader=pooch.HTTPDownloader(timeout=_TIMEOUT))
    except requests.exceptions.RequestException as error:
        # The innermost reason: requests wraps pool, address and cause around it.
        reason = getattr(next(iter(error.args), None), "reason", None) or error
        raise DataError(
            f"cannot download {file.url}: {reason} (tried {_RETRIES + 1} times). Next step: check the network, or copy"
            f" the file to MIRROR/{manifest.name}/{file.path} and pass --mirror MIRROR (or set NEUROENC_MIRROR)."
        ) from error
    except ValueError as error:
        raise _mismatch(manifest, file.url, file, str(error)) from error


def _mismatch(manifest: Manifest, where: str, file: ManifestFile, found: str) -> ChecksumError:
    return ChecksumError(
        f"checksum mismatch for {file.path} from {where}: expected sha256 {file.sha256} ({file.size} bytes), found"
        f" {found}. Nothing was kept. Next step: repair the mirror, or `neuroenc data fetch {manifest.name}`."
    )


def resolve(
    manifest: Manifest,
    *,
    root: StrPath | None = None,
    mirror: StrPath | None = None,
    files: Iterable[str] | str | None = None,
    progress: bool = True,
) -> Path:
    """Folder in which all asked files of a data set lie and are verified; fetched only where needed.

    Tried in this order: ``root`` (and nothing else), the data folder, the mirror's own folder (used in place, so that
    data is not stored twice), :func:`fetch`.

    Parameters
    ----------
    mirror, files, progress
        As for :func:`fetch`.
    root
        The data set's own folder (as :func:`fetch` returns it), where the caller keeps it.
    """
    wanted = manifest.select(files)
    for n, folder in enumerate(places(manifest.name, mirror, root)):
        problems = {f: p for f in wanted if (p := _problem(folder, f))}
        if not problems:
            return folder
        for file, problem in problems.items():
            # A damaged file of the data folder is fetched again; others belong to the user.
            if problem != "missing" and (n or root is not None):
                raise _mismatch(manifest, str(folder) if root else f"the mirror {folder}", file, problem)
        if root is not None:
            raise DataError(
                f"{folder} lacks {len(problems)} of {len(wanted)} files of {manifest.name}, first "
                f"{next(iter(problems)).path}. Next step: leave root out, or `neuroenc data fetch {manifest.name}`."
            )
    return fetch(manifest, mirror=mirror, files=[f.path for f in wanted], progress=progress)


def verify(
    name: str | Manifest,
    root: StrPath | None = None,
    mirror: StrPath | None = None,
    files: Iterable[str] | str | None = None,
) -> pd.DataFrame:
    """Hash every file of a data set anew.

    Parameters
    ----------
    name
        Data set.
    root
        The data set's own folder; default: the data folder, and for files that are not there, the mirror.
    mirror, files
        As for :func:`fetch`.

    Returns
    -------
    DataFrame
        One row per file: ``path``, ``status`` ("ok", "missing", "size differs", "checksum differs"), ``size`` and
        ``sha256`` as found (-1 and "" when missing), ``expected_size``, ``expected_sha256``, ``folder``.
    """
    import pandas as pd

    manifest = name if isinstance(name, Manifest) else load_manifest(name)
    folders = places(manifest.name, mirror, root)
    rows = []
    for f in manifest.select(files):
        folder = next((x for x in folders if (x / f.path).is_file()), folders[0])
        path = folder / f.path
        size, sha256 = (path.stat().st_size, sha256_file(path, anew=True)) if path.is_file() else (-1, "")
        differs = "missing" if size < 0 else "size differs" if size != f.size else "checksum differs"
        status = "ok" if sha256 == f.sha256 else differs
        rows.append((f.path, status, size, sha256, f.size, f.sha256, str(folder)))
    columns = ["path", "status", "size", "sha256", "expected_size", "expected_sha256", "folder"]
    return pd.DataFrame(rows, columns=columns)


def presence(manifest: Manifest, mirror: StrPath | None = None) -> str:
    """Whether the files are on this machine, by size alone: "yes", "mirror", "partly" or "no"."""
    found = []
    for word, folder in zip(("yes", "mirror"), places(manifest.name, mirror)):
        paths = [(folder / f.path, f.size) for f in manifest.files]
        there = [p.is_file() and p.stat().st_size == size for p, size in paths] or [folder.is_dir()]
        if all(there):
            return word
        found += there
    return "partly" if any(found) else "no"


def _problem(root: Path, file: ManifestFile, path: Path | None = None) -> str:
    """What is wrong with a file below ``root``: nothing (""), "missing", or what was found instead."""
    path = path or root / file.path
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != file.size:
        return f"{size} bytes"
    found = sha256_file(path)
    return "" if found == file.sha256 else f"sha256 {found}"


def _check_reachable(manifest: Manifest, missing: list[ManifestFile], mirror: Path | None) -> None:
    """Files without a public address must be in the mirror; said before anything is downloaded."""
    lost = [f.path for f in missing if not f.url and not (mirror and (mirror / manifest.name / f.path).is_file())]
    if lost:
        where = f"the mirror {mirror} does not hold them" if mirror else "no mirror is set"
        names = ", ".join(lost[:3]) + (f", ... ({len(lost)} in all)" if len(lost) > 3 else "")
        raise DataError(
            f"{manifest.name}: {names} can come from a mirror only (the manifest knows no public address), and {where}."
            f" Next step: pass --mirror MIRROR or set NEUROENC_MIRROR to a folder with {manifest.name}/{lost[0]}."
        )
