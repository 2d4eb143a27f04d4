"""Maps of directions in few dimensions: colours of voxels' weights on the cortex, places of words."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import xarray as xr
from sklearn.decomposition import PCA

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.optional import require
from neuroenc.captions.text._vectors import directions_of

# Neighbours of a point that UMAP keeps together, at most.
_NEIGHBOURS = 15


def direction_map(
    source: Any, *, n_components: int = 3, method: str = "auto", fit_subject: str | None = None, seed: int = 0
) -> xr.DataArray:
    """Map the directions of voxels (or words) to few dimensions, by UMAP on cosines or by principal components.

    Three components are colours: `neuroenc.report.plot_weight_colours` draws them on the cortex. Near colours are near
    directions; far ones, and the sizes of clusters, mean little in a UMAP.

    Parameters
    ----------
    source : Dataset of :func:`neuroenc.captions.project`, or weights (feature, voxel)
        Vectors of words are (feature, word).
    n_components : int
    method : {"auto", "umap", "pca"}
        "auto" is UMAP where the extra ``umap`` is installed; the attribute ``method`` says which it was.
    fit_subject : str, optional
        The map is fitted to the voxels of this subject (coordinate ``subject``) and applied to all others.
    seed : int

    Returns
    -------
    DataArray (voxel, channel)
        From 0 to 1 (percentiles 1 and 99 of each component, of what was fitted); NaN for voxels without a direction.

    Raises
    ------
    DataError
        Too few voxels, or a subject is named and none is known.
    ModuleNotFoundError
        UMAP is asked for and not installed.

    References
    ----------
    McInnes, Healy & Melville (2018), UMAP, arXiv 1802.03426. Luo et al. (2024), BrainSCUBA, ICLR (figure 3).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> weights = rng.standard_normal((8, 20))
    >>> found = direction_map(weights, method="pca")
    >>> found.dims, found.shape, found.attrs["method"]
    (('voxel', 'channel'), (20, 3), 'pca')
    """
    one_of("method", method, ("auto", "umap", "pca"))
    check_whole("n_components", n_components)
    used = ("umap" if find_spec("umap") else "pca") if method == "auto" else method
    target, live, coords = directions_of(source)
    fitted = live.copy()
    if fit_subject is not None:
        if "subject" not in getattr(source, "coords", ()):
            raise DataError("source has no coordinate 'subject'. Next step: assign_coords, or fit_subject=None.")
        owner = np.broadcast_to(source["subject"].values.astype(str), live.shape)
        if fit_subject not in owner:
            raise ConfigError(unknown_name("subject", fit_subject, sorted(set(owner))))
        fitted &= owner == fit_subject
    n = int(fitted.sum())
    if n <= n_components + 1 or n_components > target.shape[1]:
        raise DataError(f"{n} directions of {target.shape[1]} features for {n_components} components: too few.")
    if used == "umap":
        near = min(_NEIGHBOURS, n - 1)
        model: Any = require("umap", "umap").UMAP(
            n_components=n_components, n_neighbors=near, metric="cosine", random_state=seed, n_jobs=1
        )
    else:
        model = PCA(n_components, svd_solver="full")
    values = np.full((len(target), n_components), np.nan)
    values[fitted] = model.fit_transform(target[fitted])
    rest = live & ~fitted
    if rest.any():
        values[rest] = model.transform(target[rest])
    low, high = np.percentile(values[fitted], [1, 99], axis=0)
    values = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    if isinstance(source, (xr.Dataset, xr.DataArray)) and "subject" in source.coords:
        # Voxels of one subject may carry its name once.
        coords = {**coords, "subject": ("voxel", np.broadcast_to(source["subject"].values, live.shape))}
    return xr.DataArray(values, dims=("voxel", "channel"), coords=coords, name="map", attrs={"method": used})
