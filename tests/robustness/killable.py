"""A neuroenc command in a process of its own, forked from one that has imported everything, and killed where asked."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import neuroenc._util.files as files
from neuroenc.cli import main

# What commands import late: a fork that need not read it again starts at once.
LATE = [
    "torch", "sklearn.linear_model", "sklearn.model_selection", "scipy.stats", "matplotlib.pyplot",
    "netCDF4", "h5netcdf", "zarr", "dask.array", "nibabel", "jinja2", "pyarrow", "PIL.Image", "requests",
    "neuroenc.workflows", "neuroenc.report", "neuroenc.encoders.incontext", "neuroenc.captions", "neuroenc.embedding",
]  # fmt: skip


def preload() -> None:
    """Import what commands use; no work is done, so that no thread runs when processes are forked."""
    for name in LATE:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            for public in getattr(module, "__all__", ()) if name.startswith("neuroenc") else ():
                getattr(module, public)


class Renames:
    """Counts renames, where one state of a folder becomes the next; ``K`` ends the process before the K-th, ``K+``
    right behind it, as a power cut would."""

    def __init__(self, where: str) -> None:
        self.done = 0
        self.where = where
        os.replace, os.rename = self.watched(os.replace), self.watched(os.rename)
        files._exchange = self.watched(files._exchange)

    def watched(self, rename: Callable) -> Callable:
        def call(*args, **kwargs):
            self.done += 1
            if self.where == str(self.done):
                os.kill(os.getpid(), signal.SIGKILL)
            result = rename(*args, **kwargs)
            if self.where == f"{self.done}+":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def start(work: Callable[[], object], folder: Path, log: Path) -> int:
    """Do ``work`` in a process of its own that stands in ``folder``; its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ["NEUROENC_CACHE"] = str(folder / "cache")
        with open(log, "w") as handle:
            os.dup2(handle.fileno(), 1)
            os.dup2(handle.fileno(), 2)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(arguments: list[str], where: str = "", record: Path | None = None) -> Callable[[], None]:
    """The command as work for `start`; ``record`` gets the number of renames."""

    def work() -> None:
        renames = Renames(where)
        sys.argv = ["neuroenc", *arguments]
        try:
            main()
        finally:
            if record is not None:
                record.write_text(str(renames.done))

    return work


def wait(child: int, seconds: float = float("inf")) -> int:
    """Exit code; one that takes longer than ``seconds`` is killed, with all that it started."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, 0 if seconds == float("inf") else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            with contextlib.suppress(ProcessLookupError):  # not yet the head of its group
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
            seconds = float("inf")
        else:
            time.sleep(0.005)
