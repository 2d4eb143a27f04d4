"""Manifests: what a data set's files are, where they come from, and what their content must be."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from neuroenc._core.errors import ConfigError, unknown_name

__all__ = ["Manifest", "ManifestFile", "list_manifests", "load_manifest", "manifest_dir", "safe_join"]

_TEXT = ("name", "title", "description", "licence", "redistribution", "citation", "loader")
_OPTIONAL = ("doi", "homepage", "access")
_FILE_KEYS = ("path", "url", "sha256", "size")
_MAX_BYTES = 20_000_000
_MAX_SIZE = 2**53
_PART = re.compile(r"[A-Za-z0-9_.+@=,()\- ]+")


@dataclass(frozen=True)
class ManifestFile:
    """One file: relative path, address (``""`` where only a mirror has it), SHA-256 and size in bytes."""

    path: str
    url: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """A data set's files, licence, citation and loader, as written in ``data_manifests/NAME.toml``."""

    name: str
    title: str
    description: str
    licence: str
    redistribution: str
    citation: str
    loader: str
    files: tuple[ManifestFile, ...]
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
    raise ConfigError(
        f"no manifests at {here.parent / '_manifests'} nor at {here.parents[2] / 'data_manifests'}: the installation "
        "is incomplete. Next step: reinstall neuroenc."
    )


def list_manifests() -> list[Manifest]:
    """All manifests, sorted by name.

    Examples
    --------
    >>> [m.name for m in list_manifests()][:2]
    ['algonauts2023', 'bold5000']
    """
    return [load_manifest(p) for p in sorted(manifest_dir().glob("*.toml"))]


def load_manifest(source: str | Path) -> Manifest:
    """Read one manifest, strictly.

    Parameters
    ----------
    source
        Name of a data set, or the path of a TOML file with the keys ``name`` (equal to the file's name), ``title``,
        ``description``, ``licence``, ``redistribution``, ``citation``, ``loader``, optionally ``doi`` and
        ``homepage``, and a table ``[[files]]`` with ``path``, ``url`` (may be empty), ``sha256`` and ``size``. With
        ``access``, which says how the files are had, there may be none.

    Raises
    ------
    ConfigError
        There is no such data set (the message names the nearest); or the file cannot be read, is not TOML, has unknown
        or missing keys, a path that could leave the data folder, a malformed checksum, size or address, or two files
        at one place.

    Examples
    --------
    >>> load_manifest("objects92").licence
    'MIT (repository of rsatoolbox)'
    """
    if isinstance(source, str) and not source.endswith(".toml"):
        names = sorted(p.stem for p in manifest_dir().glob("*.toml"))
        if source not in names:
            raise ConfigError(unknown_name("data set", source, names, "Next step: `neuroenc data list`."))
        source = manifest_dir() / f"{source}.toml"
    path = Path(source)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the manifest {path}: {error.strerror or error}.") from error
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{path}: {len(raw)} bytes are too many for a manifest (at most {_MAX_BYTES}).")
    try:
        table = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        # ValueError covers TOMLDecodeError, UnicodeDecodeError and over-long integers.
        raise ConfigError(f"{path} is not a readable TOML file: {error}.") from error
    return _build(table, path)


def safe_join(root: Path, relative: str) -> Path:
    """``root / relative``, refused when it would leave ``root`` (also through a symbolic link).

    Raises
    ------
    ConfigError
        The path is absolute, climbs with ``..``, holds characters that no manifest may use, or a link on the way
        points outside ``root``.
    """
    _check_path(relative, "path")
    target = root.joinpath(*relative.split("/"))
    inside, real = root.resolve(), target.resolve()
    if inside != real and inside not in real.parents:
        raise ConfigError(
            f"{target} leads through a symbolic link to {real}, outside of {inside}; refused. "
            "Next step: replace the link by the file or folder itself."
        )
    return target


def _build(table: dict[str, Any], source: Path) -> Manifest:
    _check_keys(table, (*_TEXT, "files"), _OPTIONAL, str(source))
    for key in (*_TEXT, *_OPTIONAL):
        value = table.get(key, "")
        if not isinstance(value, str) or (key in _TEXT and not value.strip()):
            raise ConfigError(f"{source}: {key} must be a non-empty text, found {_short(value)}.")
    if table["name"] != source.stem or not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", table["name"]):
        raise ConfigError(
            f"{source}: name = {_short(table['name'])} must equal the file's name {source.stem!r} "
            "(lower case, digits, '-', '.')."
        )
    if not re.fullmatch(r"neuroenc(\.[A-Za-z_][A-Za-z0-9_]*){2,}", table["loader"]):
        raise ConfigError(
            f"{source}: loader = {_short(table['loader'])} must be the dotted name of a function inside neuroenc, "
            "such as 'neuroenc.data.loaders._v4.load'."
        )
    if table.get("homepage"):
        _check_url(table["homepage"], f"{source}: homepage")
    rows = table["files"]
    if not isinstance(rows, list) or not (rows or table.get("access")):
        raise ConfigError(f"{source}: files must be one or more [[files]] tables, found {_short(rows)}.")
    files = tuple(_file(row, f"{source}: files[{i}]") for i, row in enumerate(rows))
    _check_places(files, source)
    return Manifest(**{k: table[k] for k in (*_TEXT, *_OPTIONAL) if k in table}, files=files)


def _file(row: Any, where: str) -> ManifestFile:
    if not isinstance(row, dict):
        raise ConfigError(f"{where} must be a table, found {_short(row)}.")
    _check_keys(row, _FILE_KEYS, (), where)
    path, url, sha256, size = (row[k] for k in _FILE_KEYS)
    _check_path(path, f"{where}: path")
    if path.endswith(".part"):
        raise ConfigError(f"{where}: path = {_short(path)} ends in .part, which marks unfinished downloads.")
    if url != "":
        _check_url(url, f"{where}: url")
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ConfigError(f"{where}: sha256 = {_short(sha256)} must be 64 lower-case hexadecimal digits.")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
        raise ConfigError(f"{where}: size = {_short(size)} must be a whole number of bytes, 0 or more.")
    return ManifestFile(path, url, sha256, size)


def _check_keys(table: dict[str, Any], required: Sequence[str], optional: Sequence[str], where: str) -> None:
    for key in table:
        if key not in (*required, *optional):
            raise ConfigError(f"{where}: " + unknown_name("key", _short(key)[1:-1], [*required, *optional]))
    missing = [k for k in required if k not in table]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(missing)}. Needed: {', '.join(required)}.")


def _check_path(path: Any, where: str) -> None:
    reason = ""
    if not isinstance(path, str) or not path:
        reason = "it must be a non-empty text"
    elif len(path) > 400:
        reason = "it is longer than 400 characters"
    elif "\\" in path:
        reason = "it holds a backslash"
    elif re.match(r"[A-Za-z]:", path):
        reason = "it starts with a drive letter"
    elif PurePosixPath(path).is_absolute() or path.startswith("~"):
        reason = "it is absolute"
    elif any(part in ("", ".", "..") for part in path.split("/")):
        reason = "it holds '', '.' or '..' as a part"
    elif not all(_PART.fullmatch(part) and not part.endswith((" ", ".")) for part in path.split("/")):
        reason = "a part holds characters that are not portable"
    if reason:
        raise ConfigError(
            f"{where} = {_short(path)} is refused: {reason}. Legal: a relative path with '/' that stays "
            "inside the data folder, such as 'images/one.jpg'."
        )


def _check_url(url: Any, where: str) -> None:
    if not isinstance(url, str) or not re.fullmatch(r"https?://[A-Za-z0-9.\-]+(:\d{1,5})?(/[!-~]*)?", url):
        raise ConfigError(f"{where} = {_short(url)} must be an http or https address, or \"\" for 'mirror only'.")


def _check_places(files: tuple[ManifestFile, ...], source: Path) -> None:
    # Case is folded because macOS and Windows would write both names into one file.
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for f in files:
        key = f.path.lower()
        if key in seen:
            raise ConfigError(f"{source}: the path {f.path!r} stands twice ({seen[key]!r}).")
        seen[key] = f.path
        for parent in PurePosixPath(key).parents:
            folders[str(parent)] = f.path
    for key, path in seen.items():
        if key in folders:
            raise ConfigError(f"{source}: {path!r} is a file and also the folder of {folders[key]!r}.")


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
