"""Predicted responses to a picture: by region, on a map, and the section of the page that asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.report._page import Section
from neuroenc.report._regions import NO_ROI, ceiling_r, median, memberships
from neuroenc.report._style import data_uri, place_of
from neuroenc.report.brain._canvas import layouts

LEAST_R = 0.1  # below it voxels start out faint


def region_responses(
    predicted: xr.DataArray, voxels: xr.Dataset | None = None, reference: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Predicted response of every region to each stimulus, beside how well the region is predicted.

    The response of a region is the mean over those of its voxels that have one, ``mean_v y_sv``. Its percentile is the
    share of reference pictures whose predicted response of the same region is lower (ties count half), in percent:
    predictions of regularised encoders vary less than responses do, so that the value alone does not say whether it is
    high.

    Parameters
    ----------
    predicted : DataArray (stimulus, voxel)
        Predicted responses, in the units of the encoder.
    voxels : Dataset over ``voxel``, optional
        Coordinate ``roi`` (several joined by ";": the voxel counts in each) and, where they are known, held-out ``r``
        and ``noise_ceiling_r``; by default the coordinates of ``predicted``.
    reference : DataFrame, optional
        Rows of reference pictures, one column a region: mean predicted responses, as this function gives them.

    Returns
    -------
    DataFrame
        One row per stimulus and region, regions from early to late: ``stimulus, roi, n_voxels``; ``mean`` and ``sd``
        over voxels; ``percentile, median_r, median_ceiling_r``, NaN where unknown.

    Raises
    ------
    DataError
        ``predicted`` is not (stimulus, voxel), or ``voxels`` are others.

    Examples
    --------
    >>> coords = {"stimulus": ["face.png"], "voxel": [0, 1, 2], "roi": ("voxel", ["V1", "FFA", "FFA"])}
    >>> predicted = xr.DataArray([[0.0, 1.0, 3.0]], dims=("stimulus", "voxel"), coords=coords)
    >>> before = pd.DataFrame({"V1": [-1.0, 1.0, 2.0, 3.0], "FFA": [0.0, 0.0, 1.0, 5.0]})
    >>> region_responses(predicted, reference=before)[["roi", "n_voxels", "mean", "sd", "percentile"]]
       roi  n_voxels  mean   sd  percentile
    0   V1         1   0.0  0.0        25.0
    1  FFA         2   2.0  1.0        75.0
    """
    if not isinstance(predicted, xr.DataArray) or predicted.dims != ("stimulus", "voxel"):
        found = predicted.dims if isinstance(predicted, xr.DataArray) else type(predicted).__name__
        raise DataError(f"predicted is {found}; expected a DataArray (stimulus, voxel), as encoders predict it.")
    table = predicted.drop_vars("stimulus").isel(stimulus=0, drop=True).to_dataset(name="predicted")
    if voxels is not None:
        if not np.array_equal(voxels["voxel"].values, predicted["voxel"].values):
            raise DataError(
                f"predicted has {predicted.sizes['voxel']} voxels, the table of voxels {voxels.sizes['voxel']}, of "
                "other names or order. Next step: voxels.sel(voxel=predicted.voxel)."
            )
        table = voxels
    masks = memberships(table)
    scores = {"median_r": np.asarray(table["r"], float) if "r" in table else None, "median_ceiling_r": ceiling_r(table)}
    rows = []
    for name, values in zip(predicted["stimulus"].values, predicted.values.astype(float)):
        for roi, mask in masks.items():
            kept = values[mask & np.isfinite(values)]
            mean, sd = (float(kept.mean()), float(kept.std())) if len(kept) else (np.nan, np.nan)
            row = {"stimulus": str(name), "roi": roi, "n_voxels": int(mask.sum()), "mean": mean, "sd": sd}
            row["percentile"] = np.nan
            if reference is not None and roi in reference and len(reference) and len(kept):
                others = reference[roi].to_numpy(float)
                row["percentile"] = 100 * float((others < mean).mean() + 0.5 * (others == mean).mean())
            rows.append(row | {key: median(known, mask) for key, known in scores.items()})
    return pd.DataFrame(rows)


def prediction_view(voxels: xr.Dataset) -> dict[str, Any]:
    """Voxels of an encoder as the page of predictions draws them: places, regions, scores and maps, as JSON holds them.

    Parameters
    ----------
    voxels : Dataset over ``voxel``
        ``vertex, hemi`` or ``i, j, k`` where they have places, ``roi``, held-out ``r`` and ``noise_ceiling_r`` where
        they are known; attrs ``space, affine, volume_shape`` as responses have them.

    Returns
    -------
    dict
        ``voxel, place, roi, r, ceiling`` (one entry a voxel, None where unknown), ``regions`` from early to late,
        ``maps`` (without any, the page draws regions as a grid), ``remarks`` on what could not be placed.

    Examples
    --------
    >>> voxels = xr.Dataset({"r": ("voxel", [0.2, 0.4])}, coords={"voxel": [7, 8], "roi": ("voxel", ["V1", ""])})
    >>> view = prediction_view(voxels)
    >>> view["voxel"], view["regions"], view["r"], view["maps"]
    (['7', '8'], ['V1'], [0.2, 0.4], [])
    """
    maps, remarks = layouts(voxels)
    for one in maps:
        one["background"] = None if one["background"] is None else data_uri(one["background"], "image/png")
    n = voxels.sizes["voxel"]
    rois = voxels["roi"].values.astype(str).tolist() if "roi" in voxels.coords else [""] * n
    return {
        "voxel": [str(v) for v in voxels["voxel"].values],
        "place": [place_of(voxels, v) for v in range(n)],
        "roi": rois,
        "r": _numbers(np.asarray(voxels["r"], float) if "r" in voxels else None, n),
        "ceiling": _numbers(ceiling_r(voxels), n),
        "regions": [name for name in memberships(voxels) if name != NO_ROI] if any(rois) else [],
        "maps": maps,
        "remarks": remarks,
    }


def _numbers(values: np.ndarray | None, n: int) -> list[float | None]:
    listed = [None] * n if values is None else values.tolist()
    return [round(x, 4) if x is not None and np.isfinite(x) else None for x in listed]


def prediction_section(
    encoders: Sequence[str],
    samples: Sequence[Mapping[str, str]] = (),
    *,
    most_bytes: int = 10 * 2**20,
    endings: Sequence[str] = (),
) -> Section:
    """The section that takes a picture from the reader and shows what encoders predict for it.

    It asks the server that sent the page, and no other: ``encoder?name=NAME`` gives `prediction_view` and the encoder's
    card, ``predict?encoder=NAME`` takes a picture's bytes and gives `region_responses` and the value of each voxel.
    `neuroenc.study.serve` is that server.

    Parameters
    ----------
    encoders : sequence of str
        Names to choose from; the first is shown.
    samples : sequence of {"name", "src"}
        Pictures to try, as data URIs.
    most_bytes : int
        Of a picture; larger ones are not sent.
    endings : sequence of str
        Of files that are read, such as ".png".

    Examples
    --------
    >>> section = prediction_section(["world-s1"])
    >>> section.id, section.asks
    ('predict', True)
    """
    data = {"encoders": list(encoders), "samples": list(samples), "mostBytes": most_bytes, "leastR": LEAST_R}
    look: dict[str, Any] = {
        "template": "predict.html.j2",
        "styles": ("explorer.css", "predict.css"),
        "style": "explore",
    }
    look["context"] = {"endings": ",".join(["image/*", *endings]), "encoders": list(encoders), "least": LEAST_R}
    scripts = ("elements.js", "explorer_map.js", "predict.js")
    return Section("predict", "What would this cortex say", scripts=scripts, data={"meta": data}, asks=True, **look)
