"""What tables of scores and captions hold, checked where they enter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroenc._core.errors import DataError
from neuroenc._core.tables import check_columns

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

#: Columns that each table of captions must hold; more are kept.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "captions": ("voxel", "rank", "caption", "score"),
    "evidence": ("voxel", "rank", "stimulus", "predicted"),
    "gate": ("voxel", "captioned", "reason"),
    "folds": ("voxel", "fold", "caption"),
    "phrases": ("voxel", "rank", "phrase", "start", "end", "verdict"),
    "stability": ("voxel",),
    "sentence": ("voxel", "rho"),
    "words": ("roi", "part", "word", "count", "share"),
    "concepts": (),
    "categories": (),
    "clusters": (),
    "contrasts": (),
    "colours": ("voxel", "x", "y", "z"),
    "retrieved": ("voxel", "level", "rank", "id", "score", "ngrams", "bm25_rank", "bm25_id"),
}
#: What a check can say of a phrase.
VERDICTS = ("supported", "uncertain", "unsupported")


def check_scores(scores: Any, dims: tuple[str, ...] = ("voxel",), *, ids: bool = False) -> xr.Dataset:
    """``scores`` with ``r`` over ``dims`` and a number or name of its own for each voxel.

    Parameters
    ----------
    scores : xarray.Dataset
    dims : tuple of str
        ``("voxel",)``, or ``("cell", "voxel")`` where several encoders (cells) are compared.
    ids : bool
        Voxels must carry the coordinate ``voxel``; else they are numbered.

    Examples
    --------
    >>> import xarray as xr
    >>> check_scores(xr.Dataset({"r": ("voxel", [0.1, 0.4])})).voxel.values.tolist()
    [0, 1]
    """
    import xarray as xr

    if not isinstance(scores, xr.Dataset):
        raise DataError(
            f"scores is a {type(scores).__name__}; an xarray.Dataset over {' and '.join(dims)} is needed. "
            "Next step: scores.to_dataset(name='r')."
        )
    found = ", ".join(f"{name} {values.dims}" for name, values in scores.data_vars.items()) or "none"
    if "r" not in scores.data_vars or set(scores["r"].dims) != set(dims):
        step = "scores['r'] = ('voxel', Pearson r of each voxel)"
        if len(dims) > 1:
            step = "scores.expand_dims(cell=['name of the encoder']) if there is one encoder"
        raise DataError(f"scores needs a variable 'r' over {dims}; found: {found}. Next step: {step}.")
    if scores["r"].dtype.kind not in "fiu":
        raise DataError(f"scores['r'] has dtype {scores['r'].dtype}; legal: real numbers.")
    for dim in dims:
        if not scores.sizes[dim]:
            raise DataError(f"scores holds 0 {dim}s; there is nothing to report. Next step: look at the voxel mask.")
    if "cell" in dims and "cell" not in scores.coords:
        raise DataError(
            f"the {scores.sizes['cell']} cells of scores have no names. Next step: assign_coords(cell=...)."
        )
    if "voxel" not in scores.coords:
        if ids:
            raise DataError(
                f"scores has {scores.sizes['voxel']} voxels and coordinates {list(map(str, scores.coords))}; the "
                "coordinate 'voxel' is needed. Next step: scores.assign_coords(voxel=ids)."
            )
        scores = scores.assign_coords(voxel=np.arange(scores.sizes["voxel"]))
    for dim in dims:
        names = scores[dim].values
        if len(np.unique(names)) < len(names):
            known, counts = np.unique(names.astype(str), return_counts=True)
            twice = ", ".join(known[counts > 1][:5])
            raise DataError(
                f"scores has {len(names)} {dim}s but only {len(known)} distinct names: {dim}s {twice} are there twice. "
                f"Next step: give every {dim} of every subject its own."
            )
    return scores.transpose(*dims, ...) if len(dims) > 1 else scores


def check_voxel_table(frame: Any, what: str, voxels: np.ndarray, needed: Iterable[str] | None = None) -> pd.DataFrame:
    """``frame`` sorted by voxel (in the order of ``voxels``), level, rank, fold and start, if its columns are known.

    Parameters
    ----------
    what : str
        Its name; by default of ``needed``, a key of `COLUMNS`.
    voxels : array
        Ids of the scores; a table without the column ``voxel`` speaks of regions and is only renumbered.
    needed : iterable of str, optional
    """
    import pandas as pd

    check_columns(frame, COLUMNS[what] if needed is None else needed, what)
    if "voxel" not in frame.columns:
        return frame.reset_index(drop=True)
    strangers = ~frame["voxel"].isin(voxels)
    if strangers.any():
        shown = frame.loc[strangers, "voxel"].unique()
        raise DataError(
            f"{what} speaks of {len(shown)} voxels that scores does not hold (first: {shown[0]}). Next step: select "
            f"{what} and scores from the same voxels."
        )
    place = pd.Series(np.arange(len(voxels)), index=voxels)
    order = {"voxel": place.reindex(frame["voxel"]).to_numpy()}
    order |= {key: frame[key].to_numpy() for key in ("level", "rank", "fold", "start") if key in frame.columns}
    keys = pd.DataFrame(order).sort_values(list(order), kind="stable")
    return frame.iloc[keys.index.to_numpy()].reset_index(drop=True)


def check_vectors(vectors: Any, voxels: np.ndarray) -> xr.Dataset:
    """``vectors`` if they are as `neuroenc.captions.search_vectors` makes them, of some of ``voxels``."""
    import xarray as xr

    legal = {"a": ("text", "component"), "b": ("voxel", "component"), "s": ("voxel",)}
    found = {str(k): v.dims for k, v in vectors.data_vars.items()} if isinstance(vectors, xr.Dataset) else {}
    if found != legal or not {"text", "voxel"} <= set(vectors.coords) or "least" not in vectors.attrs:
        raise DataError(
            f"vectors are a {type(vectors).__name__} of {found or 'nothing'}; legal: {legal}. Next step: "
            "search_vectors(projection, embed_text, texts)."
        )
    named = vectors["voxel"].values
    strangers = named[~np.isin(named, voxels)]
    if len(strangers) or len(np.unique(named)) < len(named):
        what = f"{len(strangers)} voxels that scores does not hold (first: {strangers[0]})" if len(strangers) else ""
        raise DataError(
            f"vectors speak of {what or 'voxels twice'}. Next step: search_vectors of the voxels of scores."
        )
    return vectors


def check_names(frame: Any, needed: Iterable[str], what: str, known: Iterable[str], columns: Iterable[str]) -> Any:
    """``frame`` if it has the columns ``needed`` and its ``columns`` name ``known`` cells alone."""
    import pandas as pd

    frame, legal = check_columns(frame, needed, what), set(known)
    for column in columns:
        strangers = [str(x) for x in pd.unique(frame[column].astype(str)) if str(x) not in legal]
        if strangers:
            raise DataError(f"{what} speaks of cells that scores does not hold: {', '.join(strangers[:5])}.")
    return frame.reset_index(drop=True)


def check_same_voxels(found: Any, scores: xr.Dataset, needed: Iterable[str], what: str) -> xr.Dataset:
    """``found`` if it is a Dataset with the variables ``needed`` over the voxels of ``scores``, in their order."""
    import xarray as xr

    if not isinstance(found, xr.Dataset):
        raise DataError(f"{what} is a {type(found).__name__}; an xarray.Dataset over voxel is needed.")
    for name in needed:
        if name not in found:
            held = ", ".join(map(str, found.data_vars)) or "none"
            raise DataError(f"{what} has no variable {name!r} (found: {held}).")
    if found.sizes.get("voxel") != scores.sizes["voxel"] or (
        "voxel" in found.coords and not np.array_equal(found["voxel"].values, scores["voxel"].values)
    ):
        raise DataError(
            f"{what} has {found.sizes.get('voxel', 0)} voxels and scores {scores.sizes['voxel']}, or in another "
            f"order. Next step: {what}.sel(voxel=scores.voxel)."
        )
    return found
