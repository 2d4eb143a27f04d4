"""Manifests: what a data set's files are, where they come from, and what their content must be."""

from __future__ import annotations

import fnmatch
import tomllib
import warnings
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, StrictInt, ValidationError
from pydantic.dataclasses import dataclass

from neuroenc._core.errors import ConfigError, nearest_names, unknown_name
from neuroenc._core.files import check_readable_file

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
    ['algonauts2023', 'bold5000']
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
