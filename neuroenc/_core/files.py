"""Atomic writes, checked reads and content hashes."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc._core.errors import DataError, NeuroencError, StorageError
from neuroenc._core.hashes import file_sha256

# Ending of a folder that waits for its replacement.
_OLD = ".old"
# What the system says when a place cannot be written, in words that lead on.
_STORAGE = {
    errno.ENOSPC: "the disk is full. Next step: free room there, or choose another folder, and run the same again",
    errno.EDQUOT: "your quota is used up. Next step: free room there, or choose another folder, and run the same again",
    errno.EFBIG: "it would be larger than the file system or your limit allows. Next step: choose another folder",
    errno.EROFS: "it lies on a read-only file system. Next step: choose another folder",
    errno.EACCES: "it may not be written by you. Next step: choose another folder, or change its permissions",
    errno.EPERM: "it may not be written by you. Next step: choose another folder, or change its permissions",
    errno.ENOTDIR: "a part of the path is a file, not a folder. Next step: choose another folder",
    errno.EEXIST: "a file of that name stands where a folder is needed. Next step: choose another folder",
    errno.EISDIR: "a folder of that name stands where a file is needed. Next step: move it away",
    errno.ENAMETOOLONG: "its name is too long for the file system. Next step: choose a shorter one",
}


@contextmanager
def storage_errors(path: str | os.PathLike[str], below: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Turn a refusal to write ``path`` (disk full, read-only, no permission, a file in the way) into StorageError.

    With ``below``, errors that name a file outside that folder are left alone: they are about something that was read.

    >>> with storage_errors("maps/r.nii.gz"):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.StorageError: cannot write maps/r.nii.gz: the disk is full. ...
    """
    try:
        yield
    except NeuroencError:
        raise
    except Exception as error:
        # HDF5, safetensors and numpy ("80 requested and 20 written") tell a full disk in their text only.
        said = str(error)
        told = re.search(r"(?:os error |errno = )(\d+)", said)
        number = int(told[1]) if told else getattr(error, "errno", None)
        if "No space left on device" in said or said.endswith(" written"):
            number = errno.ENOSPC
        named = getattr(error, "filename", None)
        elsewhere = below is not None and named is not None and not os.fspath(named).startswith(os.fspath(below))
        if number not in _STORAGE or elsewhere:
            raise
        raise StorageError(f"cannot write {os.fspath(path)}: {_STORAGE[number]}.") from error


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step where the system can (Linux, macOS); a kill then leaves one of the two whole."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        first, second = os.fsencode(a), os.fsencode(b)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(first, second, 2) == 0)
        return bool(libc.renameat2(-100, first, -100, second, 2) == 0)
    return False


@contextmanager
def atomic_path(path: str | os.PathLike[str], directory: bool = False, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place only if the block succeeds.

    A reader, or a run killed half-way, therefore sees the old file or the whole new one. With
    ``directory=True`` the temporary path is a folder (for zarr stores). With ``sync=False`` nobody waits until the
    content is on the disk: for thousands of small files whose names are hashes of their content.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=_leftover_mark(), dir=path.parent))
    # The name keeps its endings: writers such as nibabel choose the format by them.
    temporary = holder / path.name
    try:
        with storage_errors(path, below=holder):
            if directory:
                temporary.mkdir()
            yield temporary
            if sync and not directory:
                with open(temporary, "rb+") as handle:
                    os.fsync(handle.fileno())
        with storage_errors(path):
            if directory and path.is_dir():
                if not _exchange(temporary, path):
                    # Two steps where the system cannot swap; after a kill between them `recover` takes the third.
                    os.replace(path, holder / (path.name + _OLD))
                    os.replace(temporary, path)
            else:
                os.replace(temporary, path)
    except BaseException:
        if directory:
            _put_back(holder, path)
            _remove_for_good(holder)
        raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _remove_for_good(holder: Path) -> None:
    """Remove a folder to which threads of a writer that failed (zarr's) may still add files for a moment."""
    absent = 0
    for _ in range(200):
        shutil.rmtree(holder, ignore_errors=True)
        absent = 0 if os.path.lexists(holder) else absent + 1
        if absent > 20:
            return
        time.sleep(0.02)


def _put_back(holder: Path, path: Path) -> bool:
    """Whether ``path`` had been moved away for a new folder that never came, and stands again (the new one, or it)."""
    old = holder / (path.name + _OLD)
    if not old.exists() or os.path.lexists(path):
        return False
    new = holder / path.name
    with suppress(OSError):
        os.replace(new if new.exists() else old, path)
    return True


def recover(path: str | os.PathLike[str]) -> bool:
    """Whether a folder that is written with `atomic_path` is there, put back if a kill struck while it was replaced."""
    path = Path(path)
    for _ in range(100):
        if os.path.lexists(path):
            return True
        # Names of the parent's entries, not a pattern: names may hold its special characters.
        start = f".{path.name[:40]}."
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        holders = [path.parent / x for x in beside if x.startswith(start) and x.endswith(".tmp")]
        waiting = [x for x in holders if (x / (path.name + _OLD)).exists()]
        if not waiting:
            return os.path.lexists(path)
        for holder in waiting:
            if _abandoned(holder.name):
                _put_back(holder, path)
                shutil.rmtree(holder, ignore_errors=True)
        time.sleep(0.01)  # one that is being replaced right now stands again at once
    return os.path.lexists(path)


def _abandoned(name: str) -> bool:
    """Whether a temporary folder is of a process of this machine that has ended."""
    *_, owner, _ = name.rsplit(".", 2)
    host, _, process = owner.rpartition("-")
    mine = f".{host}" == _leftover_mark().split("-")[0]
    return mine and process.isdigit() and not _alive(int(process))


def _leftover_mark() -> str:
    """Ending of temporary folders: their machine and process, so that others know when the owner is dead."""
    return f".{zlib.crc32(platform.node().encode()):08x}-{os.getpid()}.tmp"


def everything_below(folder: str | os.PathLike[str]) -> list[Path]:
    """List files and folders at every depth, while other processes may be adding and removing some.

    `pathlib.Path.rglob` raises where a folder goes between being listed and being entered.
    """
    return [Path(place, name) for place, inner, names in os.walk(folder) for name in (*inner, *names)]


def remove_leftovers(folder: str | os.PathLike[str]) -> int:
    """Remove what killed processes of this machine left half-written in and below ``folder``; how many there were.

    Temporary folders of processes that still run, and of other machines, stay.
    """
    removed = 0
    for path in everything_below(folder):
        if fnmatch(path.name, ".*.tmp") and _abandoned(path.name):
            # One that was to be replaced is not thrown away with its replacement.
            for old in path.glob("*" + _OLD) if path.is_dir() else ():
                _put_back(path, path.parent / old.name.removesuffix(_OLD))
            shutil.rmtree(path, ignore_errors=True)
            removed += 1
    return removed


def output_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder for results, or take that of a run that goes on; what a killed run left half-written is removed."""
    folder = Path(path)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(prefix=".", suffix=_leftover_mark(), dir=folder))
    remove_leftovers(folder)
    return folder


def _alive(process: int) -> bool:
    if sys.platform == "win32":  # where signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text atomically."""
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"cannot write {os.fspath(path)}: {error.object[max(0, error.start - 20) : error.end]!r} holds half of a "
            "surrogate pair, which has no encoding. Next step: rename what is called so."
        ) from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _finite(value: Any) -> Any:
    """JSON has no NaN: a missing number is null."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value


def json_text(value: Any) -> str:
    """``value`` as indented JSON; NaN becomes null."""
    return json.dumps(_finite(value), indent=2, default=_plain, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write ``value`` as `json_text`, atomically."""
    return write_text(path, json_text(value))


def check_readable_file(path: str | os.PathLike[str], what: str = "file") -> Path:
    """``path``, if it is an ordinary file that can be opened; a FIFO or a device would be waited for without end."""
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be reached ({error.strerror})"
        raise DataError(f"{what} {path} {reason}. Next step: check the path.") from error
    except ValueError as error:
        raise DataError(f"{what} {str(path)!r} is not a path: {error}.") from error
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
        kind = next((text for test, text in kinds if test(mode)), "a device")
        raise DataError(f"{what} {path} is {kind}; expected an ordinary file.")
    if not os.access(path, os.R_OK):
        raise DataError(f"{what} {path} may not be read by you. Next step: change its permissions.")
    return path


def read_text(path: str | os.PathLike[str], what: str = "file") -> str:
    """Text of a UTF-8 file (with or without a byte-order mark); another encoding is an error that names the file."""
    path = check_readable_file(path, what)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{what} {path} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}). "
            "Next step: save it as UTF-8."
        ) from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is no JSONDecodeError
        raise DataError(f"{path} is not JSON: {error}. Next step: write or copy it again.") from error


def read_npy(path: str | os.PathLike[str], what: str = "array", *, memory_map: bool = True) -> np.ndarray:
    """Array of numbers of a ``.npy`` file, memory-mapped; nothing in it is unpickled."""
    path = check_readable_file(path, what)
    try:
        found: np.ndarray = np.load(path, mmap_mode="r" if memory_map else None, allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:
        with open(path, "rb") as handle:
            start = handle.read(6)
        size = path.stat().st_size
        if start != b"\x93NUMPY":
            reason = f"is not .npy (it begins with {start!r})" if size else "is empty"
        elif "object" in str(error).lower():
            reason = "holds pickled Python objects, which are never opened; expected numbers"
        else:
            reason = f"is cut short or damaged ({error})"
        raise DataError(f"{what} {path} {reason}: {size:,} bytes. Next step: write or copy it again.") from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise DataError(f"{what} {path} is an archive of arrays (.npz); expected one array (.npy).")
    return found


@contextmanager
def open_hdf5(path: str | os.PathLike[str], what: str = "file") -> Iterator[Any]:
    """An HDF5 file, open for reading; what HDF5 says of one that is cut short or damaged names the file."""
    import h5py

    path = check_readable_file(path, what)
    try:
        with h5py.File(path, "r") as handle:
            yield handle
    except NeuroencError:
        raise
    except (OSError, KeyError, ValueError, IndexError, TypeError, RuntimeError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise DataError(
            f"{what} {path} ({size:,} bytes) cannot be read: {error}. Next step: copy or download it again."
        ) from error


def plain_json(value: Any) -> Any:
    """``value`` as JSON gives it back: lists for tuples and arrays, null for a missing number.

    >>> plain_json({"a": (1, float("nan"))})
    {'a': [1, None]}
    """
    return json.loads(json.dumps(_finite(value), default=_plain, allow_nan=False))


def write_sealed_json(path: str | os.PathLike[str], record: dict[str, Any]) -> Path:
    """Write a JSON record with the hash of its own content (``seal``), so that an edited one is noticed."""
    return write_text(path, _sealed_text(record))


def _sealed_text(record: dict[str, Any]) -> str:
    plain = plain_json(record)
    return json_text({**plain, "seal": hash_json(plain)})


def read_sealed_json(path: str | os.PathLike[str], *, needed: tuple[str, ...] = ()) -> Any:
    """Read what `write_sealed_json` wrote; ``needed`` are fields that must be there."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise DataError(f"{path} holds {type(record).__name__}; expected a record. Next step: write or copy it again.")
    seal = record.pop("seal", None)
    if seal is None:
        raise DataError(f"{path} has no seal: it is incomplete or foreign. Next step: save or copy it again.")
    if seal != hash_json(record):
        raise DataError(f"{path} was changed after it was written. Next step: save or copy it again.")
    missing = [name for name in needed if name not in record]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}. Next step: save or copy it again.")
    return record


def write_pair(
    folder: str | os.PathLike[str], arrays: str, write: Callable[[Path], Any], name: str, record: dict[str, Any]
) -> Path:
    """Write the arrays of a model and the sealed JSON record ``name`` with their ``sha256``; a kill leaves the old
    pair or the new one, never one of each.

    A folder that holds nothing else is replaced as a whole. Beside other files the arrays wait under a hidden name
    until the record stands; `paired_file` finds them there.

    Parameters
    ----------
    arrays, name : str
        Names of the two files.
    write : callable
        Gets the path at which it writes the arrays.
    record : dict
    """
    folder = Path(folder)
    alone = not folder.is_dir() or {p.name for p in folder.iterdir()} <= {arrays, name}
    if alone and folder.resolve() != Path.cwd():  # who stands in a folder would be left in the old one
        with atomic_path(folder.resolve(), directory=True) as whole:
            write(whole / arrays)
            write_sealed_json(whole / name, {**record, "sha256": sha256_file(whole / arrays)})
        return folder
    first = folder / f".{arrays}.next"
    with atomic_path(first) as temporary:
        write(temporary)
    digest = sha256_file(first)
    # Named by content: what an earlier kill left waiting belongs to the record that still stands.
    waiting = folder / f".{arrays}.{digest[:16]}.next"
    os.replace(first, waiting)
    write_sealed_json(folder / name, {**record, "sha256": digest})
    os.replace(waiting, folder / arrays)
    for other in [p for p in folder.iterdir() if p.name.startswith(f".{arrays}.") and p.name.endswith(".next")]:
        other.unlink(missing_ok=True)
    return folder


def paired_file(folder: str | os.PathLike[str], arrays: str, digest: str) -> Path:
    """Path of the arrays with the hash that their record promises, where `write_pair` left them."""
    stands = Path(folder) / arrays
    waiting = stands.with_name(f".{arrays}.{digest[:16]}.next")
    for path in (stands, waiting):
        if path.is_file() and sha256_file(path) == digest:
            return path
    check_readable_file(stands)
    raise DataError(f"{stands} is not the file that was saved. Next step: save or copy it again.")


def seal_folder(folder: str | os.PathLike[str], name: str, record: dict[str, Any]) -> None:
    """Write ``record`` as JSON ``name`` with the SHA-256 of every other file below a folder that `atomic_path` gave."""
    root = Path(folder)
    files = {p.relative_to(root).as_posix(): sha256_file(p) for p in sorted(everything_below(root)) if p.is_file()}
    (root / name).write_text(_sealed_text({**record, "files": files}))


def read_sealed_folder(folder: str | os.PathLike[str], name: str, what: str, kind: str, version: int) -> Any:
    """Record of a folder that `seal_folder` wrote, after every file was hashed again."""
    root = Path(folder)
    missing = f"{root} holds no {what} of version {version}. Next step: build it again."
    if not (root / name).is_file():
        raise DataError(missing)
    plain = read_json(root / name)
    if not isinstance(plain, dict) or plain.get("kind") != kind or plain.get("version") != version:
        raise DataError(missing)
    record = read_sealed_json(root / name, needed=("files",))
    for file, promised in record["files"].items():
        if not (root / file).is_file():
            raise DataError(f"the {what} {root} lacks {file}. Next step: copy or build it again.")
        if sha256_file(root / file) != promised:
            raise DataError(f"{root / file} was changed after it was written. Next step: copy or build it again.")
    return record


def hash_path(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, or of a folder's: the names below it and the content of each.

    Names that begin with a dot (leftovers of writing, caches) do not count.
    """
    path = Path(path)
    if not path.is_dir():
        return sha256_file(check_readable_file(path))
    digest = hashlib.sha256()
    for file in sorted(p for p in everything_below(path) if p.is_file()):
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()}\0{sha256_file(file)}\0".encode())
    return digest.hexdigest()


def sha256_file(path: str | os.PathLike[str], anew: bool = False) -> str:
    """SHA-256 of a file; that of a large one that has not changed since is remembered (see `file_sha256`).

    ``anew`` reads it in any case.
    """
    if Path(path).exists():
        check_readable_file(path)
    return file_sha256(path, anew)


def hash_array(*arrays: Any) -> str:
    """SHA-256 over dtype, shape and content of arrays (strings included); independent of memory layout.

    >>> hash_array([1.0, 2.0]) == hash_array([1.0, 2.0]) != hash_array([1.0, 3.0])
    True
    """
    digest = hashlib.sha256()
    for array in arrays:
        a = np.asarray(array)
        if a.dtype.kind in "OUS":
            digest.update(f"str{a.shape}".encode())
            digest.update("\0".join(str(x) for x in a.ravel()).encode())
        else:
            digest.update(f"{a.dtype.str}{a.shape}".encode())
            digest.update(np.ascontiguousarray(a).data.cast("B") if a.size else b"")
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(_finite(value), sort_keys=True, default=_plain).encode()).hexdigest()
