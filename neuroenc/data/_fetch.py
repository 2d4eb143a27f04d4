"""Files of a data set on this machine: found, copied from a mirror, downloaded, verified."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroenc._core.errors import DataError
from neuroenc._core.files import atomic_path, output_folder, read_json, remove_leftovers, sha256_file, write_json
from neuroenc._core.paths import cache_dir
from neuroenc._core.progress import progress as progress_bar
from neuroenc.data._download import disk_error, download, mismatch
from neuroenc.data._manifest import Manifest, ManifestFile, load_manifest, safe_join

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["data_dir", "fetch", "locked", "mirror_dir", "presence", "resolve", "verify"]

StrPath = str | os.PathLike[str]


def data_dir(dest: StrPath | None = None) -> Path:
    """Folder that holds one folder per data set: ``dest``, else NEUROENC_DATA, else the cache folder's ``data``."""
    value = dest or os.environ.get("NEUROENC_DATA")
    return Path(value).expanduser() if value else cache_dir() / "data"


def mirror_dir(mirror: StrPath | None = None) -> Path | None:
    """Folder laid out as ``MIRROR/NAME/path`` that is tried before the network, or None.

    Raises
    ------
    DataError
        A mirror is named but is not a folder.
    """
    value = mirror or os.environ.get("NEUROENC_MIRROR")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        origin = "given as mirror" if mirror else "of the environment variable NEUROENC_MIRROR"
        raise DataError(
            f"the folder {folder} {origin} does not exist. Next step: correct it, or leave it out to download."
        )
    return folder


def fetch(
    name: str | Manifest,
    dest: StrPath | None = None,
    mirror: StrPath | None = None,
    files: Iterable[str] | str | None = None,
    progress: bool = True,
) -> Path:
    """Bring a data set's files to ``DEST/NAME``: kept if right, else copied from a mirror, else downloaded.

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
            f"{manifest.name} cannot be fetched: {manifest.access} Next step: tell the loader where it is,"
            f" load_dataset({manifest.name!r}, root='FOLDER')."
        )
    wanted = manifest.select(files)
    root, source = data_dir(dest) / manifest.name, _mirror_root(manifest, mirror)
    checker = _Checker(root)
    missing = [f for f in wanted if checker.problem(f)]
    if not missing:
        _tidy(root)
        checker.save()
        return root
    _check_reachable(manifest, missing, source, mirror)
    try:
        output_folder(root)
        with locked(root), _bar(manifest.name, missing, progress) as bar:
            _check_space(root, missing)
            for file in missing:
                # Another process may have brought it while this one waited for the lock.
                if checker.problem(file):
                    if source is not None and safe_join(source, file.path).is_file():
                        _copy(manifest, file, source, root, bar)
                    else:
                        download(file, root, name=manifest.name, advance=bar.update)
                    checker.add(file)
    except DataError:
        raise
    except OSError as error:
        raise disk_error(root, sum(f.size for f in missing), error) from error
    finally:
        checker.save()
    return root


def resolve(
    name: str | Manifest,
    *,
    root: StrPath | None = None,
    mirror: StrPath | None = None,
    files: Iterable[str] | str | None = None,
    use_mirror_in_place: bool = True,
    progress: bool = True,
) -> Path:
    """Folder in which all asked files of a data set lie and are verified; fetched only where needed.

    Tried in this order: ``root`` (and nothing else), the data folder, the mirror's own folder (used in place, so that
    data is not stored twice), :func:`fetch`. A file is hashed once; its size and time stamp are remembered in the cache
    folder, so later calls are fast.

    Parameters
    ----------
    name, mirror, files, progress
        As for :func:`fetch`.
    root
        The data set's own folder (as :func:`fetch` returns it), where the caller keeps it.
    use_mirror_in_place
        False copies from the mirror into the data folder instead.

    Raises
    ------
    ChecksumError, DataError, ConfigError
        As for :func:`fetch`; also when ``root`` lacks a file.
    """
    manifest = name if isinstance(name, Manifest) else load_manifest(name)
    wanted = manifest.select(files)
    if root is not None:
        folder = Path(root).expanduser()
        problems = _problems(folder, wanted)
        for file, problem in problems.items():
            if problem != "missing":
                raise mismatch(str(folder), file, problem, f"Next step: `neuroenc data fetch {manifest.name}`.")
        if problems:
            raise DataError(
                f"{folder} lacks {len(problems)} of {len(wanted)} files of {manifest.name}, first "
                f"{next(iter(problems)).path}. Next step: leave root out, or `neuroenc data fetch {manifest.name}`."
            )
        return folder
    folder = data_dir() / manifest.name
    if not _problems(folder, wanted):
        return folder
    source = _mirror_root(manifest, mirror)
    if source is not None and use_mirror_in_place:
        problems = _problems(source, wanted)
        for file, problem in problems.items():
            if problem != "missing":
                raise mismatch(f"the mirror {source}", file, problem, "Next step: repair the mirror.")
        if not problems:
            return source
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
    folders = [Path(root).expanduser()] if root is not None else [data_dir() / manifest.name]
    if root is None and (source := _mirror_root(manifest, mirror)) is not None:
        folders.append(source)
    rows = []
    for f in manifest.select(files):
        folder = next((x for x in folders if safe_join(x, f.path).is_file()), folders[0])
        path = safe_join(folder, f.path)
        size, sha256 = (path.stat().st_size, sha256_file(path)) if path.is_file() else (-1, "")
        status = "missing" if size < 0 else "size differs" if size != f.size else "checksum differs"
        if sha256 == f.sha256 and size == f.size:
            status = "ok"
        rows.append((f.path, status, size, sha256, f.size, f.sha256, str(folder)))
    columns = ["path", "status", "size", "sha256", "expected_size", "expected_sha256", "folder"]
    return pd.DataFrame(rows, columns=columns)


def presence(manifest: Manifest, mirror: StrPath | None = None) -> str:
    """Whether the files are on this machine, by size alone: "yes", "mirror", "partly" or "no"."""
    if not manifest.files:
        source = _mirror_root(manifest, mirror)
        return "yes" if (data_dir() / manifest.name).is_dir() else "mirror" if source else "no"
    found = []
    for folder in (data_dir() / manifest.name, _mirror_root(manifest, mirror)):
        paths = [safe_join(folder, f.path) if folder else None for f in manifest.files]
        found.append(
            [p is not None and p.is_file() and p.stat().st_size == f.size for p, f in zip(paths, manifest.files)]
        )
    here, there = found
    if all(here):
        return "yes"
    if all(there):
        return "mirror"
    return "partly" if any(here) or any(there) else "no"


class _Checker:
    """Says what is wrong with files below ``root``; remembers verified ones by size, time stamp and hash."""

    def __init__(self, root: Path) -> None:
        self.root = root
        key = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:24]
        self.path = cache_dir() / "verified" / f"{key}.json"
        self.known: dict[str, list[Any]] = self._read()
        self.changed = False

    def problem(self, file: ManifestFile) -> str:
        """ "" if the file is right, "missing", or what was found instead."""
        path = safe_join(self.root, file.path)
        if not path.is_file():
            return "missing"
        stat = path.stat()
        if stat.st_size != file.size:
            return f"{stat.st_size} bytes"
        if self.known.get(file.path) == [stat.st_size, stat.st_mtime_ns, file.sha256]:
            return ""
        found = sha256_file(path)
        if found != file.sha256:
            return f"sha256 {found}"
        self.add(file)
        return ""

    def add(self, file: ManifestFile) -> None:
        stat = safe_join(self.root, file.path).stat()
        self.known[file.path] = [stat.st_size, stat.st_mtime_ns, file.sha256]
        self.changed = True

    def save(self) -> None:
        """Write the stamps; a cache that cannot be written only costs hashing again."""
        if self.changed:
            try:
                write_json(self.path, self._read() | self.known)
            except (OSError, DataError):
                return
            self.changed = False

    def _read(self) -> dict[str, list[Any]]:
        try:
            table = read_json(self.path)
        except (OSError, ValueError):
            return {}
        return table if isinstance(table, dict) else {}


def _tidy(root: Path) -> None:
    """Remove what a fetch that was killed behind its last file left: its lock, temporary folders."""
    lock = _lock_file(root)
    with suppress(ImportError, OSError):
        import fcntl

        with open(lock, "r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one that is held is of a process that still fetches
            lock.unlink()
    remove_leftovers(root)


def _problems(root: Path, wanted: Iterable[ManifestFile]) -> dict[ManifestFile, str]:
    checker = _Checker(root)
    found = {f: p for f in wanted if (p := checker.problem(f))}
    checker.save()
    return found


def _mirror_root(manifest: Manifest, mirror: StrPath | None) -> Path | None:
    folder = mirror_dir(mirror)
    return folder / manifest.name if folder is not None and (folder / manifest.name).is_dir() else None


def _check_reachable(
    manifest: Manifest, missing: list[ManifestFile], source: Path | None, mirror: StrPath | None
) -> None:
    """Files without a public address must be in the mirror; said before anything is downloaded."""
    lost = [f for f in missing if not f.url and not (source and safe_join(source, f.path).is_file())]
    if not lost:
        return
    folder = mirror_dir(mirror)
    where = f"the mirror {folder} does not hold them" if folder else "no mirror is set"
    names = ", ".join(f.path for f in lost[:3]) + (f", ... ({len(lost)} in all)" if len(lost) > 3 else "")
    raise DataError(
        f"{manifest.name}: {names} can come from a mirror only (the manifest knows no public address), and {where}. "
        f"Next step: pass --mirror MIRROR or set NEUROENC_MIRROR to a folder with {manifest.name}/{lost[0].path}."
    )


def _check_space(root: Path, missing: list[ManifestFile]) -> None:
    needed, free = sum(f.size for f in missing), shutil.disk_usage(root).free
    if needed > free:
        raise DataError(
            f"{root}: {needed} bytes are needed and {free} are free. Next step: free space, or choose another folder "
            "with --dest or the environment variable NEUROENC_DATA."
        )


def _copy(manifest: Manifest, file: ManifestFile, source: Path, root: Path, bar: Any) -> None:
    origin, target = safe_join(source, file.path), safe_join(root, file.path)
    with atomic_path(target) as temporary:
        shutil.copyfile(origin, temporary)
        # The copy is hashed, not the original: it is what stays.
        size, found = temporary.stat().st_size, sha256_file(temporary)
        if size != file.size or found != file.sha256:
            then = f"Nothing was kept. Next step: repair the mirror (`neuroenc data verify {manifest.name}`)."
            raise mismatch(f"the mirror {origin}", file, f"sha256 {found} ({size} bytes)", then)
    bar.update(file.size)


def _bar(name: str, missing: list[ManifestFile], show: bool) -> Any:
    return progress_bar(
        desc=name, total=sum(f.size for f in missing), show=show, unit="B", unit_scale=True, unit_divisor=1024
    )


def _lock_file(path: Path) -> Path:
    return path.parent / f".{path.name}.lock"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time makes what stands at ``path`` (advisory; released when a process dies)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    lock = _lock_file(path)
    while True:
        handle = open(lock, "w")  # noqa: SIM115 (closed below)
        # Some network file systems know no locks; then checksums and renames are the only guard.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.stat(lock).st_ino == os.fstat(handle.fileno()).st_ino:
                break
        # The process that held it took the file away: the lock is on nothing.
        handle.close()
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        handle.close()
