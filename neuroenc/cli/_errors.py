"""What a user is told when a command cannot go on: one message and an exit code instead of a traceback."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import typer

from neuroenc._core.errors import NeuroencError
from neuroenc._core.files import storage_errors

P = ParamSpec("P")
R = TypeVar("R")

_TRACEBACK = "NEUROENC_TRACEBACK=1 shows the traceback"
# What an option sets for the time of the command, in this process and those that it starts. Libraries that draw bars
# of their own read theirs when they draw.
_ENVIRONMENT = {
    "quiet": {"NEUROENC_PROGRESS": "0", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    "verify": {"NEUROENC_VERIFY": "1"},
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Errors that other packages raise about the content of a file; none is imported for this.
_CONTENT = {
    "BadZipFile",
    "EOFError",
    "EmptyDataError",
    "HeaderDataError",
    "ImageFileError",
    "JSONDecodeError",
    "ParserError",
    "SafetensorError",
    "TOMLDecodeError",
    "UnicodeDecodeError",
    "UnidentifiedImageError",
    "UnpicklingError",
    "error",
}


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised so that half-written files are removed as after Ctrl-C."""


def clean_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Decorator for commands: errors about the user's input are one line on stderr.

    Exit codes: 2 for the user's input, files and machine, 1 for a fault of neuroenc (a line that asks to report it),
    130 after Ctrl-C and 143 after SIGTERM. Warnings are one line too. NEUROENC_TRACEBACK=1 shows the traceback instead,
    and the source of warnings. ``quiet=True`` among the command's options hides every progress bar, ``verify=True``
    hashes files anew.

    Examples
    --------
    >>> @clean_errors
    ... def command() -> None:
    ...     raise NeuroencError("3 voxels are NaN. Next step: drop them.")
    >>> import contextlib, io
    >>> try:
    ...     with contextlib.redirect_stderr(io.StringIO()) as shown:
    ...         command()
    ... except typer.Exit as stop:
    ...     print(stop.exit_code, shown.getvalue())
    2 error: 3 voxels are NaN. Next step: drop them.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _sigterm(), _plain_warnings(), _environment(kwargs):
                return command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            # The reader (head, less) has gone; Python would complain once more when it flushes at exit.
            with suppress(OSError, ValueError), open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except KeyboardInterrupt as stop:
            by, code = ("SIGTERM", 143) if isinstance(stop, _Terminated) else ("Ctrl-C", 130)
            typer.echo(f"stopped by {by}; finished steps are kept: run the same command again to go on.", err=True)
            raise typer.Exit(code) from None
        except Exception as error:
            if type(error).__module__.split(".")[0] in ("click", "typer"):
                raise
            text, code = _message(error)
            if os.environ.get("NEUROENC_TRACEBACK", "0") not in ("", "0"):
                traceback.print_exc()
            typer.echo(text, err=True)
            raise typer.Exit(code) from error

    return wrapped


@contextmanager
def _environment(options: Mapping[str, Any]) -> Iterator[None]:
    wanted = {k: v for option, values in _ENVIRONMENT.items() if options.get(option) for k, v in values.items()}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as sentences, without the line of source that raised them."""
    before = warnings.formatwarning

    def sentence(message: Warning | str, *_: Any) -> str:
        return f"warning: {' '.join(str(message).split())}\n"

    if os.environ.get("NEUROENC_TRACEBACK", "0") in ("", "0"):
        warnings.formatwarning = sentence  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextmanager
def _sigterm() -> Iterator[None]:
    """A batch system that ends a job gets the same tidy stop as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _message(error: Exception) -> tuple[str, int]:
    """What to print, and the exit code."""
    if isinstance(error, NeuroencError):
        return f"error: {error}", 2
    kind, said = type(error).__name__, " ".join(str(error).split()) or "no further words"
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        where = "the device" if kind == "OutOfMemoryError" else "this machine"
        return (
            f"error: {where} has too little memory: {said[:300]}. Next step: a smaller max_memory or batch size, "
            f"fewer voxels, or a larger machine ({_TRACEBACK}).",
            2,
        )
    if isinstance(error, ModuleNotFoundError) and "Next step" in said:
        return f"error: {said}", 2
    file = _file_of(error)
    if isinstance(error, OSError):
        if error.errno in _FULL or "No space left on device" in said:
            try:
                with storage_errors(file or "its output"):
                    raise error
            except NeuroencError as known:
                return f"error: {known}", 2
        if file or error.errno is not None:
            reason = (error.strerror or said)[:300]
            return f"error: {file or 'the system'}: {reason}. Next step: check that path ({_TRACEBACK}).", 2
    elif file and (kind in _CONTENT or isinstance(error, (UnicodeDecodeError, json.JSONDecodeError, EOFError))):
        return (
            f"error: {file} cannot be read: {said[:300]} ({kind}). Next step: copy or make that file again "
            f"({_TRACEBACK}).",
            2,
        )
    return (
        f"error: unexpected {kind}: {said[:300]}. This is a fault of neuroenc: please report it with what you ran "
        f"({_TRACEBACK}).",
        1,
    )


def _file_of(error: Exception) -> str:
    """The file that an error is about: as it says itself, or the path in the innermost function that was given one."""
    named = getattr(error, "filename", None)
    if isinstance(named, (str, bytes, os.PathLike)):
        return os.fsdecode(named)
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for name in ("path", "file", "filename", "folder"):
            value = frame.f_locals.get(name)
            if isinstance(value, (str, Path)) and "\0" not in str(value) and os.path.lexists(value):
                found = os.fspath(value)
    return found
