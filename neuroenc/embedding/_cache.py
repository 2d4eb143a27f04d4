"""Feature cache: features in the one store, extracted in blocks that outlive a kill."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from neuroenc._core import store as kept
from neuroenc._core.cache import cache_clear as cache_clear, cache_list as cache_list, trim_cache
from neuroenc._core.errors import DataError, StorageError
from neuroenc._core.paths import cache_dir as cache_dir

# Left free on the disk, for everything else that is written there.
_SPARE = 2**24


def block_rows(batch_size: int, at_least: int = 256) -> int:
    """Rows of a block: whole batches, so that resuming gives the same batches as running through.

    >>> block_rows(64), block_rows(100), block_rows(1000)
    (256, 300, 1000)
    """
    return batch_size * max(1, -(-at_least // batch_size))


def _size(n: float) -> str:
    return f"{n / 1e9:.3g} GB" if n >= 1e9 else f"{n / 1e6:.3g} MB"


class FeatureCache:
    """Features by the settings that decide them.

    Several processes may share it: who comes second waits for what the first extracts. Where the disk has no room,
    features are computed and not kept.

    Parameters
    ----------
    folder : path, optional
        In place of ``cache_dir() / "features"``.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.store = kept.Store(cache_dir() / "features" if folder is None else folder)

    def load(self, settings: Mapping[str, Any]) -> tuple[np.ndarray, str] | None:
        """Values and provenance, or None where they are missing or damaged."""
        found = self.store.read("features", settings)
        return None if found is None else (found["values"], found["about"]["provenance"])

    def has(self, settings: Mapping[str, Any]) -> bool:
        """Whether these features are there (they may turn out to be damaged when they are read)."""
        return self.store.has("features", settings)

    def ahead(self, settings: Mapping[str, Any], start: int, stop: int, values: Sequence[np.ndarray]) -> bool:
        """Keep a block of features whose turn comes later; False where the disk has no room."""
        try:
            part = self.store.part("features", settings)
            part.keep("block", [start, stop], lambda: {"values": np.concatenate(values)})
        except StorageError:
            return False
        return True

    def compute(
        self, settings: Mapping[str, Any], n: int, rows: int, extract: Callable[[int, int], np.ndarray], provenance: str
    ) -> np.ndarray:
        """Extract ``n`` rows in blocks of ``rows``, keep each, and put them together at the end.

        Parameters
        ----------
        settings : mapping
        extract : callable
            ``extract(start, stop)`` gives float32 rows ``start:stop``.
        provenance : str
            JSON string kept with the values.

        Returns
        -------
        array (n, ...)
            float32; memory-mapped where it is larger than 1 GiB.
        """
        part = self.store.part("features", settings)
        spans = [(start, min(start + rows, n)) for start in range(0, n, rows)]
        held: dict[int, np.ndarray] = {}  # blocks that the disk did not take

        def block(start: int, stop: int) -> np.ndarray:
            def made() -> dict[str, np.ndarray]:
                held[start] = extract(start, stop)
                if start == 0:
                    self._check_room(n * held[start][0].nbytes)
                return {"values": held[start]}

            found: np.ndarray = part.keep("block", [start, stop], made)["values"]
            held.pop(start, None)
            return found

        def made() -> dict[str, Any]:
            names = ("kind", "backbone", "weights", "layer", "pooling")
            told = [str(settings[k]) for k in names if settings.get(k)] + ["normalised"] * bool(
                settings.get("normalised")
            )
            about = {"what": f"{' '.join(told)}, {n} rows", "provenance": provenance}
            return {"values": kept.Blocks(n, (block(*span) for span in spans)), "about": about}

        try:
            values: np.ndarray = self.store.keep("features", settings, made)["values"]
            trim_cache()
            return values
        except StorageError as error:
            reason = error

        def rest(start: int, stop: int) -> np.ndarray:
            if start in held:
                return held[start]
            found = part.read("block", [start, stop])
            return extract(start, stop) if found is None else found["values"]

        held[0] = rest(*spans[0])
        step = "`neuroenc cache clear`, or set NEUROENC_CACHE to another disk"
        if n * held[0][0].nbytes > kept.IN_MEMORY:
            raise DataError(f"the feature cache has no room: {reason} Or: {step}.") from reason
        told = f"the feature cache has no room: {reason} Or: {step}. Features are computed and not kept."
        warnings.warn(told, UserWarning, stacklevel=4)
        return np.concatenate([rest(*span) for span in spans])

    def _check_room(self, size: int) -> None:
        """Whether there is room for all blocks and for the whole that is put together in the end."""
        free = shutil.disk_usage(self.store.folder).free
        if free < 2 * size + _SPARE:
            needed = f"features of {_size(size)} need {_size(2 * size + _SPARE)}, and {_size(free)} are free"
            raise StorageError(f"{needed} in {self.store.folder}. Next step: free room there.")


def check_finite(block: np.ndarray, ids: np.ndarray, start: int) -> np.ndarray:
    """Features of a block of stimuli, none of which may be NaN or infinite."""
    finite = np.isfinite(block.reshape(len(block), -1)).all(1)
    if not finite.all():
        bad = ids[start : start + len(block)][~finite]
        raise DataError(
            f"{bad.size} of {len(block)} features from {str(bad[0])!r} on are not finite. Next step: look at that "
            "stimulus, and at the weights (a float16 checkpoint may have overflowed)."
        )
    return block
