"""The demo's few-shot step: how far 20, 50 or 100 trials of its subject lead, in context and by two ridges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.store import Store
from neuroenc.encoders import RidgeEncoder

if TYPE_CHECKING:
    from neuroenc.encoders.incontext import InContextModel
    from neuroenc.report import Section

# A few seconds: every third voxel of the demo's subject.
_SIZES, _DRAWS, _VOXELS = (20, 50, 100), 2, 300
# Keys of the summary, and what table and figure call them.
_NAMES = {"icl": "in context", "ridge": "ridge (cross-validated)", "ridge_shared": "ridge (one penalty for all voxels)"}


def shipped_model(name: str = "world") -> InContextModel | None:
    """A shipped in-context model, or None where this installation has none.

    >>> shipped_model("nothing") is None
    True
    """
    from neuroenc.encoders.incontext import load_model

    try:
        return load_model(name)
    except DataError:
        return None


def few_shot(
    X: xr.DataArray,
    Y: xr.DataArray,
    X_query: xr.DataArray,
    Y_query: xr.DataArray,
    ceiling: np.ndarray | None,
    store: Store,
    model: InContextModel,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Support curve over voxels of a subject that the model never saw, 300 at most, and numbers for the summary.

    Parameters
    ----------
    X, Y : DataArrays (stimulus, feature) and (stimulus, voxel)
        Pool that supports are drawn from; unit-norm features, z-scored responses.
    X_query, Y_query : DataArrays
        Test stimuli and responses.
    ceiling : array (voxel,), optional
        Share of the test responses' variance that is signal.
    store : Store
    model : InContextModel
    seed : int
        Of the draws.
    """
    from neuroenc.encoders.incontext import InContextEncoder, summarise_curve, support_curve

    some = np.arange(0, Y.shape[1], -(-Y.shape[1] // _VOXELS))
    Y, Y_query, limit = Y[:, some], Y_query[:, some], None if ceiling is None else ceiling[some]

    def work() -> dict[str, pd.DataFrame]:
        methods = {
            _NAMES["icl"]: InContextEncoder(model, response_scale="as-is"),
            _NAMES["ridge"]: RidgeEncoder(cv=5, progress=False),
            _NAMES["ridge_shared"]: RidgeEncoder(cv=5, alpha_per_voxel=False, progress=False),
        }
        curve = support_curve(
            methods,
            X,
            Y,
            X_query,
            Y_query,
            sizes=_SIZES,
            n_draws=_DRAWS,
            seed=seed,
            noise_ceiling=limit,
            progress=False,
        )
        table = summarise_curve(curve, n_bootstraps=500, seed=seed)
        if limit is not None:
            table["normalised"] = summarise_curve(curve, n_bootstraps=2, normalise=True)["explained_variance"]
        return {"curve": table}

    inputs = [X, Y, X_query, Y_query, limit, seed, model, list(_NAMES), list(_SIZES), _DRAWS]
    table = store.keep("few-shot", inputs, work)["curve"]
    summary: dict[str, Any] = {}
    for row in table.to_dict("records"):
        name = next(key for key, label in _NAMES.items() if label == row["method"])
        summary[f"few_shot_ev:{name}:{row['size']}"] = float(row["explained_variance"])
    return table, summary


def few_shot_section(table: pd.DataFrame) -> Section:
    """Figure and table as a section of the report."""
    from neuroenc.report import Block, Section, plot_support_curves

    shown = table.drop(columns=["group"]).rename(columns={"size": "support trials"})
    words = "; ".join(
        f"{r['method']}, {r['size']} trials: {r['explained_variance']:.3f}" for r in table.to_dict("records")
    )
    return Section(
        "few-shot",
        "If there had been few trials only",
        "The shipped in-context model was trained on other simulated subjects. It sees 20, 50 or 100 trials of this "
        "one (the support) and gives every voxel its weights without any fitting.",
        [
            Block(
                plot_support_curves(table),
                f"Explained variance by support size. {words}",
                "Means over voxels of all regions and draws of the support; bands are intervals over both.",
                shown,
                about="explained variance",
                opened=True,
            )
        ],
        nav="Few trials",
        terms=["support", "explained variance"],
    )


def few_shot_line(summary: dict[str, Any]) -> str:
    """What the command prints."""
    parts = []
    for size in _SIZES:
        ours, best = (
            summary[f"few_shot_ev:icl:{size}"],
            max(summary[f"few_shot_ev:{name}:{size}"] for name in ("ridge", "ridge_shared")),
        )
        parts.append(f"{size} trials {ours:.3f} (better ridge {best:.3f})")
    return "few-shot explained variance, in context, mean over voxels: " + ", ".join(parts)
