"""Are responses z-scored as they say, or as a method needs?"""

from __future__ import annotations

import numpy as np
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.data._build import ZSCORED
from neuroenc.data._groups import Rows, group_rows, moments

__all__ = ["check_zscored"]

# A subset of a z-scored set (one category, a test split) has not mean 0 and sd 1 exactly; these bounds are
# on the median voxel, outside what a subset shows and well inside what raw signals show.
_SUBSET_MEAN, _SUBSET_SD, _SUBSET_MIN = 1.5, (0.1, 2.0), 8
_STRICT = 0.01


def check_zscored(responses: xr.DataArray, required: str | None) -> None:
    """Raise DataError unless ``responses`` are z-scored within ``required`` (default: what they declare)."""
    declared = str(responses.attrs.get("zscored", "none"))
    if declared not in ZSCORED:
        raise DataError(f"attribute zscored is {declared!r}; legal: {', '.join(ZSCORED)}.")
    by = required or declared
    if by not in ("session", "run"):
        if by == "none":
            return
        raise DataError(f"zscored={by!r} is not legal; use 'session' or 'run'.")
    if not responses.size:
        return
    averaged = responses.dims[0] == "stimulus"
    sufficient = declared == by or declared == "run"
    if averaged:
        if not sufficient:
            raise DataError(
                f"responses are averaged over repeats and declare zscored={declared!r} (required {by!r});"
                " this cannot be mended after averaging. Next step:"
                f" neuroenc.data.average_repeats(neuroenc.data.zscore(presentations, by={by!r}))."
            )
        groups: list[tuple[str, Rows]] = [("all stimuli", slice(None))]
    else:
        groups = group_rows(responses, by)
    complete = responses.attrs.get("zscored_n") == responses.shape[0]
    strict = not averaged and (complete or not sufficient)
    low_mean = low_sd = np.inf
    high_mean = high_sd = -np.inf
    wrong = 0
    for _, rows in groups:
        n, mean, sd = moments(responses.data, rows)
        alive = (sd > 1e-6) | (np.abs(mean) > 1e-6)
        alive &= np.isfinite(mean)
        if not alive.any() or (not strict and n < _SUBSET_MIN):
            continue
        mean, sd = mean[alive], sd[alive]
        low_mean, high_mean = min(low_mean, mean.min()), max(high_mean, mean.max())
        low_sd, high_sd = min(low_sd, sd.min()), max(high_sd, sd.max())
        if strict:
            off = np.abs(sd - 1) > _STRICT
            if n > 1:
                off &= np.abs(sd * np.sqrt(n / (n - 1)) - 1) > _STRICT
            wrong += int(bool((off | (np.abs(mean) > _STRICT)).any()))
        else:
            off_mean = np.median(np.abs(mean)) > _SUBSET_MEAN
            off_sd = not (0 if averaged else _SUBSET_SD[0]) <= np.median(sd) <= _SUBSET_SD[1]
            wrong += int(off_mean or off_sd)
    if wrong:
        claim = f", although the attributes declare zscored={declared!r}" if sufficient else ""
        raise DataError(
            f"responses are not z-scored within {by}{claim}: voxel means per {by} range"
            f" {low_mean:.3g}..{high_mean:.3g} and standard deviations {low_sd:.3g}..{high_sd:.3g} (expected"
            f" 0 and 1) in {wrong} of {len(groups)} groups. Next step: neuroenc.data.zscore(responses,"
            f" by={by!r})"
            + ("." if sufficient else f"; if these are part of a z-scored set, declare it: attrs['zscored'] = {by!r}.")
        )
