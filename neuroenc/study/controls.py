"""Captions of fitted weights against those of weights whose features were shuffled: scores, intervals, verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from neuroenc import stats

BETTER = "better than shuffled weights"
_WORSE = "no better than shuffled weights"
_UNKNOWN = "too few to tell from shuffled weights"
_DRAWS = 1000


def compared(
    control: str, n_voxels: int, fitted: float, shuffled: float, draws: np.ndarray | None, n_units: int
) -> dict[str, Any]:
    """One row of a table of controls, with its verdict in words.

    ``draws`` are differences, fitted minus shuffled, over resamples of ``n_units`` stimuli or voxels; None where
    there are too few.
    """
    low = high = np.nan
    if draws is not None:
        low, high, _ = (float(x) for x in stats.sample_interval(draws, fitted - shuffled, n_units=n_units))
    verdict = _UNKNOWN if not np.isfinite(low) else BETTER if low > 0 else _WORSE
    return {
        "control": control,
        "n_voxels": n_voxels,
        "fitted weights": fitted,
        "shuffled weights": shuffled,
        "difference": fitted - shuffled,
        "low": low,
        "high": high,
        "verdict": verdict,
    }


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def mark(captions: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """Captions with a column ``control``: what they did not pass, "" where they passed all."""
    failed = controls[controls["verdict"] != BETTER]
    words = "; ".join(f"{verdict} ({name})" for name, verdict in zip(failed["control"], failed["verdict"]))
    return captions.assign(control=words)
