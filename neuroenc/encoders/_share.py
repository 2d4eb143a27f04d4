"""Share saved encoders: into a folder or onto a hub, and back from a folder, a web server or a hub, with checksums."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pandas as pd

from neuroenc._core.errors import ChecksumError, ConfigError, DataError, unknown_name
from neuroenc._core.files import read_json, sha256_file, storage_errors, write_json
from neuroenc._core.hub import from_hub
from neuroenc._core.memory import parse_memory
from neuroenc._core.optional import require
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.weights import whole_folder
from neuroenc.encoders._base import encoder_folder, list_encoders, load_encoder, pulled_dir, shipped_encoders

#: The files of an encoder's folder; nothing else is ever copied, whatever an index says.
FILES = ("encoder.json", "arrays.safetensors", "README.md")
INDEX, _FORMAT = "index.json", 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LONGEST_INDEX, _PIECE = 2**24, 2**20
#: Seconds to connect, and between two pieces.
_TIMEOUT = (5, 60)
_COLUMNS = ("name", "title", "subject", "n_voxels", "median_r", "bytes")


def push_encoder(
    folder: str | os.PathLike[str], dest: str | os.PathLike[str], name: str | None = None, *, private: bool = False
) -> str:
    """Add a saved encoder to a library of encoders: a folder, or a model repository of the Hugging Face Hub.

    A library is a folder of encoders' folders with ``index.json``: for every encoder its title and the SHA-256 and size
    of each file. Copied onto any web server it can be pulled from there.

    Parameters
    ----------
    folder : path or str
        As of `load_encoder`; one that was changed is refused.
    dest : path or "hf://USER/NAME"
        The library, made where it is not there; or a repository of the hub (needs ``huggingface_hub`` and a login).
    name : str, optional
        In the library; default: the folder's name.
    private : bool
        Of a repository that is made.

    Returns
    -------
    str
        What `pull_encoder` takes.

    Raises
    ------
    ConfigError
        An address that cannot be written to, or a name that is not one of a folder.
    DataError
        No such encoder, or one that was changed after it was saved.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as library:
    ...     source = push_encoder("world-s1", library)
    ...     print(encoder_table(library)[["name", "n_voxels"]].values.tolist())
    [['world-s1', 834]]
    """
    source = encoder_folder(folder)
    load_encoder(source)
    target = os.fspath(dest)
    if target.startswith("hf://"):
        return _push_hub(source, _repository(target), private)
    if "://" in target:
        raise ConfigError(
            f"{target} cannot be written to; legal are a folder and hf://USER/NAME. Next step: push into a folder, and "
            "copy it to your web server."
        )
    root, called = Path(target), _legal(name or source.resolve().name)
    _copy(source, root / called)
    write_index(root)
    return str(root / called)


def write_index(library: str | os.PathLike[str]) -> Path:
    """Write ``index.json`` of a library anew from the encoders that lie in it.

    Parameters
    ----------
    library : path
        Folder of encoders' folders.
    """
    root, found = Path(library), {}
    for record in sorted(root.glob("*/encoder.json")):
        sizes = {p.name: {"sha256": sha256_file(p), "size": p.stat().st_size} for p in _files(record.parent)}
        found[record.parent.name] = {**_about(record.parent), "files": sizes}
    return write_json(root / INDEX, {"kind": "encoders", "format": _FORMAT, "encoders": found})


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in FILES if (folder / name).is_file()]


def _checked(folder: Path) -> Any:
    """The encoder, if its folder is sound; a page that was edited is told when it is used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_encoder(folder)


def _about(folder: Path) -> dict[str, Any]:
    """A line on an encoder: title, subject, voxels, held-out accuracy."""
    encoder = _checked(folder)
    card, n = encoder.card, np.size(encoder.intercept_) if hasattr(encoder, "intercept_") else 0
    scores = None if card is None else card.scores
    r = float(np.nanmedian(scores["r"])) if scores is not None and "r" in scores else float("nan")
    return {
        "title": card.title if card else "",
        "subject": card.subject if card else "",
        "n_voxels": len(encoder._voxels_["voxel"][1]) if encoder._voxels_ else int(n),
        "median_r": round(r, 4),
    }


def encoder_table(source: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """Encoders of this machine, or of a library.

    Parameters
    ----------
    source : path or address, optional
        A folder or ``http(s)://`` address with ``index.json``; default: those that are shipped and that were pulled.

    Returns
    -------
    DataFrame
        ``name, title, subject, n_voxels, median_r`` (held-out correlation, median over voxels) and ``bytes``.

    Raises
    ------
    DataError
        No library there, or no network.

    Examples
    --------
    >>> encoder_table()["name"].tolist()[:2]
    ['world-s1', 'world-s2']
    """
    if source is None:
        places = {name: encoder_folder(name) for name in list_encoders()}
        sizes = {k: {p.name: {"size": p.stat().st_size} for p in _files(v)} for k, v in places.items()}
        entries = {k: {**_about(v), "files": sizes[k]} for k, v in places.items()}
    else:
        entries = read_index(source)
    rows = [
        {"name": k, "bytes": sum(f["size"] for f in v["files"].values()), **{c: v.get(c, "") for c in _COLUMNS[1:-1]}}
        for k, v in entries.items()
    ]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def pull_encoder(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    max_size: str = "4GB",
    progress: bool = True,
) -> Path:
    """Fetch an encoder of a library; every file is checked against the library's index and the encoder's own seal.

    Nothing stands in ``out`` before all of it is right. What is fetched is numbers and JSON; no code of it runs.

    Parameters
    ----------
    source : path or address
        ``LIBRARY/NAME`` with LIBRARY a folder or an ``http(s)://`` address, or ``hf://USER/NAME``.
    out : path, optional
        Folder of the encoder; by default it is kept in the cache folder and found by its NAME.
    max_size : str
        More is refused before it is fetched, and while it is.
    progress : bool

    Returns
    -------
    Path
        The encoder's folder.

    Raises
    ------
    ChecksumError
        A file is not what the index promises; nothing is kept.
    DataError
        No such library or encoder (the nearest names are told), too large, or no network.
    ConfigError
        A name that no folder may have, or that of a shipped encoder.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     where = push_encoder("world-s2", f"{folder}/library", "mine")
    ...     print(pull_encoder(where, f"{folder}/here").name)
    here
    """
    limit, text = parse_memory(max_size), os.fspath(source).rstrip("/")
    if text.startswith("hf://"):
        repository = _repository(text)
        target = _target(_legal(repository.split("/")[1]), out)
        _copy(_pull_hub(repository), target, limit)
        return target
    library, _, name = text.rpartition("/")
    target = _target(_legal(name), out)
    entries = read_index(library or ".")
    if name not in entries:
        raise DataError(unknown_name(f"encoder of {library or 'this folder'}:", name, entries))
    files = entries[name]["files"]
    size = sum(entry["size"] for entry in files.values())
    if size > limit:
        raise DataError(
            f"{text} has {size:,} bytes; allowed are {limit:,}. Next step: a larger max_size, if you trust it."
        )
    bar = progress_bar(desc=name, total=size, show=progress, unit="B", unit_scale=True, unit_divisor=1024)
    with bar, whole_folder(target, FILES) as temporary:
        for file, entry in files.items():
            if _is_address(text):
                _download(f"{text}/{quote(file)}", temporary / file, entry["size"])
            else:
                shutil.copyfile(Path(text) / file, temporary / file)
            found = sha256_file(temporary / file)
            if found != entry["sha256"]:
                raise ChecksumError(
                    f"{text}/{file} has sha256 {found}, the index promises {entry['sha256']}. Nothing was kept. "
                    "Next step: ask whoever keeps the library to push it again."
                )
            bar.update(entry["size"])
        _checked(temporary)
    return target


def read_index(library: str | os.PathLike[str]) -> dict[str, Any]:
    """Encoders of a library by name: ``title, subject, n_voxels, median_r``; ``files`` with ``sha256, size``."""
    where = f"{os.fspath(library).rstrip('/')}/{INDEX}"
    if where.startswith("hf://"):
        raise ConfigError("hf://USER/NAME is one encoder, no library. Next step: neuroenc encoder pull hf://USER/NAME.")
    if _is_address(where):
        try:
            index = json.loads(_read(where, _LONGEST_INDEX))
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{where} is not JSON: {error}.") from error
    elif not Path(where).is_file():
        raise DataError(
            f"{os.fspath(library)} is no library of encoders (no {INDEX}). Next step: LIBRARY/NAME, with the folder "
            "that neuroenc encoder push was given as LIBRARY."
        )
    else:
        index = read_json(where)
    if not isinstance(index, Mapping) or index.get("kind") != "encoders" or index.get("format") != _FORMAT:
        raise DataError(
            f"{where} is no index of encoders of format {_FORMAT}. Next step: a newer neuroenc, or push again."
        )
    entries = index.get("encoders")
    if not isinstance(entries, Mapping) or not all(_sound(k, v) for k, v in entries.items()):
        bad = next((k for k, v in entries.items() if not _sound(k, v)), "") if isinstance(entries, Mapping) else ""
        raise DataError(
            f"{where}: the entry {bad!r} is not legal; expected a name of letters, digits and ._-, and for "
            f"{', '.join(FILES)} a sha256 and a size. Nothing was fetched. Next step: push again."
        )
    return dict(entries)


def _sound(name: Any, entry: Any) -> bool:
    """Whether an entry of an index is one; file names are compared with the legal ones, never joined as they come."""
    files = entry.get("files") if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(files, Mapping):
        return False
    return set(FILES[:2]) <= set(files) <= set(FILES) and all(
        isinstance(f, Mapping)
        and isinstance(f.get("size"), int)
        and f["size"] >= 0
        and re.fullmatch(r"[0-9a-f]{64}", str(f.get("sha256"))) is not None
        for f in files.values()
    )


def _legal(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} names no encoder; legal are letters, digits and ._- (at most 100).")
    return name


def _target(name: str, out: str | os.PathLike[str] | None) -> Path:
    if out is not None:
        return Path(out)
    if name in shipped_encoders():
        raise ConfigError(f"{name!r} is the name of a shipped encoder, which would hide it. Next step: --out FOLDER.")
    return pulled_dir() / name


def _copy(source: Path, target: Path, limit: int | None = None) -> None:
    """The files of an encoder, whole or not at all."""
    files = _files(source)
    size = sum(p.stat().st_size for p in files)
    if limit is not None and size > limit:
        raise DataError(f"{source} has {size:,} bytes; allowed are {limit:,}. Next step: a larger max_size.")
    if source.resolve() == target.resolve():
        return
    with whole_folder(target, FILES) as temporary:
        for file in files:
            shutil.copyfile(file, temporary / file.name)
        _checked(temporary)


def _is_address(text: str) -> bool:
    kind = urlsplit(text).scheme
    if "://" in text and kind not in ("http", "https"):
        raise ConfigError(f"{text} is of kind {kind}://; legal are a folder, http(s):// and hf://USER/NAME.")
    return "://" in text


def _pieces(address: str, limit: int) -> Any:
    """Content of an address, piece by piece; more than ``limit`` bytes are never taken."""
    import requests

    taken = 0
    try:
        with requests.get(address, stream=True, timeout=_TIMEOUT) as answer:
            if answer.status_code != 200:
                raise DataError(
                    f"{address} answers {answer.status_code} {answer.reason}. Next step: check the address."
                )
            for piece in answer.iter_content(_PIECE):
                taken += len(piece)
                if taken > limit:
                    raise DataError(f"{address} gives more than {limit:,} bytes. Nothing was kept.")
                yield piece
    except requests.exceptions.RequestException as error:
        reason = getattr(next(iter(error.args), None), "reason", None) or error
        raise DataError(f"cannot fetch {address}: {reason}. Next step: check the address and the network.") from error


def _read(address: str, limit: int) -> bytes:
    return b"".join(_pieces(address, limit))


def _download(address: str, path: Path, size: int) -> None:
    with storage_errors(path), open(path, "wb") as handle:
        for piece in _pieces(address, size):
            handle.write(piece)


def _repository(address: str) -> str:
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)/?", address)
    if found is None:
        raise ConfigError(f"{address!r} names no repository; legal is hf://USER/NAME.")
    return found[1]


def _push_hub(source: Path, repository: str, private: bool) -> str:
    hub = require("huggingface_hub", "clip")
    step = "huggingface-cli login, and a repository that you may write"
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(source), allow_patterns=list(FILES))
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{repository} could not be written on the hub: {said}. Next step: {step}.") from error
    return f"hf://{repository}"


def _pull_hub(repository: str) -> Path:
    hub = require("huggingface_hub", "clip")

    def fetch() -> Path:
        return Path(hub.snapshot_download(repository, allow_patterns=list(FILES)))

    return from_hub(fetch, f"the encoder {repository}", "pull it where there is a network, and push it into a folder")
