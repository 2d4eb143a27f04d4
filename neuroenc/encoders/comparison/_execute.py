"""Run the fits of a comparison here, in processes, or on a Dask cluster; finished ones are not run again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neuroenc._core.progress import progress as bar
from neuroenc.encoders.comparison._fitting import fit_job
from neuroenc.encoders.comparison._grid import Job
from neuroenc.encoders.comparison._store import Source, Store

__all__ = ["execute"]


def run_one(job: Job, source: Source, folder: str, threads: int) -> str:
    """Fit a job and keep its result; the name of its cell."""
    store = Store(Path(folder), source)
    work = store.work(job)
    store.write(job, fit_job(job, source, threads, work))
    shutil.rmtree(work, ignore_errors=True)
    return job.cell.name


def execute(
    jobs: Sequence[Job],
    source: Source,
    store: Store,
    *,
    client: Any,
    workers: int,
    threads: int,
    show: bool,
    say: Callable[[str], None],
) -> None:
    """Fit every job that has no result yet.

    Workers write their own results, so that a comparison that is killed loses only the fits in progress. A
    client's workers must see the store's folder under the same path.
    """
    waiting = [job for job in jobs if not store.has(job)]
    if len(waiting) < len(jobs):
        say(f"  {len(jobs) - len(waiting)} of {len(jobs)} fits done before")
    if not waiting:
        return
    folder = str(store.folder.resolve())
    if client is not None:
        shared = source.shared(store.folder / "inputs")
        # Not pure: what counts is the file, which a forgotten result would not bring back.
        futures = [client.submit(run_one, job, shared, folder, threads, pure=False) for job in waiting]
        client.gather(futures)
        return
    if workers == 1:
        for job in bar(waiting, desc="fits", show=show):
            run_one(job, source, folder, threads)
        return
    from joblib import Parallel, delayed

    shared = source.shared(store.folder / "inputs")
    # Long fits first: cells with a core would otherwise be what everybody waits for.
    waiting.sort(key=lambda job: (not job.cell.core, job.cell.closed_form))
    done = Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered")(
        delayed(run_one)(job, shared, folder, threads) for job in waiting
    )
    for _ in bar(done, total=len(waiting), desc="fits", show=show):
        pass
