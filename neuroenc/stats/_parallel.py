"""Threads and progress for loops over blocks, permutations and resamples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from neuroenc._core.errors import ConfigError
from neuroenc._core.progress import progress as drawn

__all__ = ["Progress", "check_jobs", "run", "ticker"]

# True shows a tqdm bar; a callable is told (done, total); total is None where it is not known.
Progress = bool | Callable[[int, int | None], Any]
T = TypeVar("T")
S = TypeVar("S")


def check_jobs(n_jobs: object) -> int:
    """Number of threads; -1 is all cores."""
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or (n_jobs < 1 and n_jobs != -1):
        raise ConfigError(f"n_jobs={n_jobs!r} is not legal; give a number of threads, or -1 for all cores.")
    return (os.cpu_count() or 1) if n_jobs == -1 else n_jobs


def ticker(progress: Progress, total: int | None, desc: str) -> tuple[Callable[[int], None], Callable[[], None]]:
    """(Told how many more are done, told that all is over)."""
    if callable(progress):
        told, done = progress, 0

        def step(more: int) -> None:
            nonlocal done
            done += more
            told(done, total)

        return step, lambda: None
    if not progress:
        return lambda more: None, lambda: None
    bar = drawn(desc=desc, total=total)
    return lambda more: (bar.update(more), None)[1], bar.close


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
    n_jobs = check_jobs(n_jobs)
    if total is None and isinstance(items, Sized):
        total = len(items)
    step, close = ticker(progress, total, desc)
    try:
        if n_jobs == 1:
            for item in items:
                yield work(item)
                step(1)
            return
        source = iter(items)
        with ThreadPoolExecutor(n_jobs) as pool:
            waiting: list[Future[S]] = [pool.submit(work, item) for item in islice(source, 2 * n_jobs)]
            try:
                while waiting:
                    result = waiting.pop(0).result()
                    waiting.extend(pool.submit(work, item) for item in islice(source, 1))
                    yield result
                    step(1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        close()
