"""Threads and progress of loops over blocks, permutations and resamples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from joblib import Parallel, delayed

from neuroenc._core.errors import ConfigError
from neuroenc._core.progress import progress as progress_bar

# True shows a tqdm bar; a callable is told (done, total); total is None where it is not known.
Progress = bool | Callable[[int, int | None], Any]
T = TypeVar("T")
S = TypeVar("S")


def check_jobs(n_jobs: object) -> int:
    """Number of threads; -1 is all cores."""
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or (n_jobs < 1 and n_jobs != -1):
        raise ConfigError(f"n_jobs={n_jobs!r} is not legal; give a number of threads, or -1 for all cores.")
    return (os.cpu_count() or 1) if n_jobs == -1 else n_jobs


@contextmanager
def ticking(progress: Progress, total: int | None, desc: str) -> Iterator[Callable[[int], Any]]:
    """Callback for how many more items are done."""
    if callable(progress):
        done = 0

        def tick(more: int) -> None:
            nonlocal done
            done += more
            progress(done, total)

        yield tick
    elif progress:
        with progress_bar(desc=desc, total=total) as bar:
            yield bar.update
    else:
        yield lambda more: None


def run(
    work: Callable[[T], S],
    items: Iterable[T],
    *,
    n_jobs: int = 1,
    progress: Progress = False,
    total: int | None = None,
    desc: str = "",
) -> Iterator[S]:
    """Results of ``work`` on every item in order, with at most ``2 n_jobs`` of them waiting.

    Threads, because the large operations of numpy and scipy release the interpreter lock.
    """
    pool = Parallel(check_jobs(n_jobs), require="sharedmem", return_as="generator")
    with ticking(progress, len(items) if total is None and isinstance(items, Sized) else total, desc) as tick:
        for found in pool(delayed(work)(item) for item in items):
            yield found
            tick(1)
