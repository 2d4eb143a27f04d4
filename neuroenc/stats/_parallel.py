"""Threads and progress of loops over blocks, permutations and resamples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from joblib import Parallel, delayed

from neuroenc._core.errors import ConfigError
from neuroenc._core.progress import progress as progress_bar

T = TypeVar("T")
S = TypeVar("S")


def check_jobs(n_jobs: object) -> int:
    """Number of threads; -1 is all cores."""
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or (n_jobs < 1 and n_jobs != -1):
        raise ConfigError(f"n_jobs={n_jobs!r} is not legal; give a number of threads, or -1 for all cores.")
    return (os.cpu_count() or 1) if n_jobs == -1 else n_jobs


def run(
    work: Callable[[T], S],
    items: Iterable[T],
    *,
    n_jobs: int = 1,
    progress: bool = False,
    total: int | None = None,
    desc: str = "",
) -> Iterator[S]:
    """Results of ``work`` on every item in order, with at most ``2 n_jobs`` of them waiting.

    Threads, because the large operations of numpy and scipy release the interpreter lock.
    """
    pool = Parallel(check_jobs(n_jobs), require="sharedmem", return_as="generator")
    found = pool(delayed(work)(item) for item in items)
    if progress:
        found = progress_bar(found, desc=desc, total=len(items) if isinstance(items, Sized) else total)
    yield from found
