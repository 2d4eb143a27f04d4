"""Where independent tasks run: in this process, in processes of this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from neuroenc._core.errors import ConfigError
from neuroenc._core.files import _leftover_mark, hash_array, storage_errors
from neuroenc._core.progress import progress as bar


@dataclass(frozen=True)
class Shared:
    """An array that tasks read: itself, or the .npy file that other processes map into memory."""

    array: np.ndarray | None = None
    file: str = ""

    def load(self) -> np.ndarray:
        """The array (mapped, where it lies in a file)."""
        return self.array if self.array is not None else np.load(self.file, mmap_mode="r", allow_pickle=False)


class Executor:
    """Run independent tasks serially, in ``workers`` processes (joblib), or on a Dask ``client``.

    Results do not depend on which. A task that was on a Dask worker when it died is run again on another.

    Parameters
    ----------
    workers : int
        Processes of this machine.
    client : str or dask.distributed.Client, optional
        "tcp://HOST:PORT" of a scheduler, "local:4" for four processes of a local cluster, or a client that is active.
        Its workers must see the folder of shared arrays and results under the same path.
    show : bool
        Draw progress bars.

    Examples
    --------
    >>> Executor().map(pow, [(2, 3), (3, 2)])
    [8, 9]
    """

    def __init__(self, workers: int = 1, client: Any = None, show: bool = True) -> None:
        if workers < 1:
            raise ConfigError(f"workers = {workers} must be at least 1.")
        self.workers, self.show = workers, show
        self._client: Any = client or None
        self._own = False
        self._shared: Any = None

    @property
    def remote(self) -> bool:
        """Whether tasks run in other processes."""
        return self.workers > 1 or self._client is not None

    @property
    def client(self) -> Any:
        """The Dask client, connected when it is first asked for; None without one."""
        if isinstance(self._client, str):
            from neuroenc._core.optional import require

            require("distributed", "big")
            from distributed import Client

            kind, _, count = self._client.partition(":")
            try:
                if kind == "local":
                    self._client = Client(n_workers=int(count or 2), threads_per_worker=1, processes=True)
                    self._own = True
                else:
                    self._client = Client(self._client)
                    self._own = True
            except (OSError, ValueError, TimeoutError) as error:
                raise ConfigError(
                    f"no Dask cluster at {self._client!r} ({error}). Next step: tcp://HOST:PORT of a scheduler that "
                    "runs, or local:4."
                ) from error
        return self._client

    def close(self) -> None:
        """Remove shared arrays, and close the cluster's connection where this executor opened it."""
        if self._shared is not None:
            self._shared.cleanup()
            self._shared = None
        if self._own:
            with suppress(Exception):
                self._client.close()
                if self._client.cluster is not None:
                    self._client.cluster.close()

    def share(self, array: np.ndarray, folder: Path) -> Shared:
        """An array as tasks can read it: for other processes it is written below ``folder``, once, until `close`.

        No other process counts on the file; one that was killed leaves it to `remove_leftovers`.
        """
        if not self.remote:
            return Shared(array)
        with storage_errors(folder):
            if self._shared is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._shared = TemporaryDirectory(prefix=".shared.", suffix=_leftover_mark(), dir=folder)
            path = Path(self._shared.name) / f"{hash_array(array)}.npy"
            if not path.exists():
                np.save(path, array, allow_pickle=False)
        return Shared(file=str(path.resolve()))

    def map(self, function: Callable[..., Any], tasks: Sequence[tuple], desc: str = "") -> list[Any]:
        """``[function(*task) for task in tasks]``, in this order whoever finishes first."""
        if not self.remote or (len(tasks) < 2 and self._client is None):
            return [function(*task) for task in bar(tasks, desc=desc, show=self.show and len(tasks) > 1)]
        found: list[Any] = [None] * len(tasks)
        for number, value in bar(self._done(function, tasks), desc=desc, total=len(tasks), show=self.show):
            found[number] = value
        return found

    def _done(self, function: Callable[..., Any], tasks: Sequence[tuple]) -> Iterator[tuple[int, Any]]:
        if self._client is not None:
            from distributed import as_completed

            # Not pure: what counts are files, which a forgotten result would not bring back.
            futures = [self.client.submit(_numbered, function, n, task, pure=False) for n, task in enumerate(tasks)]
            for future in as_completed(futures):
                yield future.result()
            return
        from joblib import Parallel, delayed

        yield from Parallel(n_jobs=self.workers, backend="loky", return_as="generator_unordered")(
            delayed(_numbered)(function, n, task) for n, task in enumerate(tasks)
        )


def _numbered(function: Callable[..., Any], number: int, task: tuple) -> tuple[int, Any]:
    return number, function(*task)
