"""How far test stimuli are from training stimuli, and splits that say how far: duplicates, clusters, named sets."""

from __future__ import annotations

import json
import os
import re
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from neuroenc._core.checks import check_fraction, check_whole, make_rng
from neuroenc._core.errors import DataError, unknown_name
from neuroenc._core.files import check_readable_file
from neuroenc._core.tables import decode_text, read_table
from neuroenc._core.topk import BestRows
from neuroenc.data._align import stimulus_ids
from neuroenc.data._stimuli import Stimuli

#: Similarity from which two pictures are near duplicates, where nothing else is said.
NEAR = 0.95
#: Similarity from which they are equal but for rounding.
EQUAL = 0.9999
_BLOCK, _CHUNK = 1024, 8192  # rows of similarities that are held at a time
_FREQUENCIES = 256


def small_pictures(stimuli: Stimuli, size: int = 16) -> xr.DataArray:
    """Small grey pictures as features, to find pictures that are nearly the same.

    Parameters
    ----------
    stimuli : Stimuli
        With images.
    size : int
        Pixels a side, averages over the picture, whatever its shape.

    Returns
    -------
    DataArray (stimulus, feature), float32
        Grey values less the picture's mean, at unit length (0 of an even picture), so that products are correlations
        over pixels and brightness and contrast do not count.

    Raises
    ------
    DataError
        There are no images.

    Examples
    --------
    >>> from neuroenc.data import simulate_world
    >>> small_pictures(simulate_world(5, seed=0), size=8).shape
    (5, 64)
    """
    if stimuli.images is None:
        raise DataError("the stimuli have no images to compare. Next step: compare features of them instead.")
    side = check_whole("size", size, 2)
    values = np.empty((len(stimuli), side * side), dtype=np.float64)
    for n in range(len(stimuli)):
        grey = stimuli.image(n).convert("F").resize((side, side), Image.Resampling.BOX)
        values[n] = np.asarray(grey).ravel()
    values -= values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    # Rounding of greys is not a picture.
    values = np.divide(values, length, out=np.zeros_like(values), where=length > 1e-3 * side)
    return xr.DataArray(
        values.astype(np.float32), dims=("stimulus", "feature"), coords={"stimulus": stimuli.ids}, name="pixels"
    )


def _directions(features: xr.DataArray) -> np.ndarray:
    """Features (stimulus, feature) less their mean, at unit length; what has no direction has one apart."""
    values = features.values.reshape(len(features), -1)
    mean = values.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        raise DataError(
            f"features of {len(bad)} of {len(values)} stimuli hold NaN or infinite values, first "
            f"{str(features['stimulus'].values[bad[0]])!r}. Next step: drop these stimuli, or embed them anew."
        )
    out = np.zeros((len(values), values.shape[1] + 1), dtype=np.float32)
    for start in range(0, len(values), _BLOCK):
        out[start : start + _BLOCK, :-1] = values[start : start + _BLOCK] - mean
    length = np.sqrt(np.einsum("ij,ij->i", out, out, dtype=np.float64))
    still = length <= 1e-7 * float(length.max(initial=0.0))
    out /= np.where(still, 1.0, length)[:, None].astype(np.float32)
    out[still, :-1], out[:, -1] = 0.0, still
    return out


def _best(asked: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Highest similarity of each row of ``asked`` to a row of ``given``, and which; exact, chunk by chunk."""
    best = BestRows(asked, 1, len(given), normalise=False)
    for start in range(0, len(given), _CHUNK):
        rows = given[start : start + _CHUNK]
        best.update(SimpleNamespace(start=start, rows=rows, at=lambda i, a=start: a + i, names=lambda i: i))
    scores, index = best.finish()
    return np.clip(scores[:, 0], -1.0, 1.0), index[:, 0]


def nearest_stimuli(features: xr.DataArray, train: Any, test: Any) -> pd.DataFrame:
    r"""The training stimulus that is nearest to each test stimulus.

    Similarity is the cosine of features less their mean over all stimuli,
    :math:`\cos(x_i - \bar x,\, x_j - \bar x)`: 1 for equal stimuli, about 0 for two that have nothing in common.

    Parameters
    ----------
    features : DataArray (stimulus, feature), float32
        Of any space, or from `small_pictures`.
    train, test : DataArray with a ``stimulus`` coordinate, or sequence of str
        A stimulus that is on both sides has itself as its nearest.

    Returns
    -------
    DataFrame
        One row a test stimulus: ``stimulus``, ``nearest`` (id) and ``similarity``. Computed in blocks; neither their
        size nor the order of stimuli changes a number.

    Raises
    ------
    DataError
        A stimulus has no features, or features are not finite.

    Examples
    --------
    >>> from neuroenc.data import make_features
    >>> x = make_features([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]], stimulus=["cat", "car", "kitten"])
    >>> nearest_stimuli(x, ["cat", "car"], ["kitten"]).round(2).values.tolist()
    [['kitten', 'cat', 1.0]]
    """
    rows = pd.Index(stimulus_ids(features))
    sides = []
    for side in (train, test):
        ids = stimulus_ids(side) if isinstance(side, xr.DataArray) else np.asarray(list(side), dtype=str)
        wanted = pd.unique(np.asarray(ids).astype(str))
        at = rows.get_indexer(pd.Index(wanted))
        if (at < 0).any():
            raise DataError(unknown_name("stimulus without features:", str(wanted[at < 0][0]), rows.tolist()))
        sides.append((wanted, at))
    unit = _directions(features)
    (given, g), (asked, a) = sides
    similarity, index = _best(unit[a], unit[g])
    return pd.DataFrame({"stimulus": asked, "nearest": given[index], "similarity": similarity.astype(np.float64)})


def near_duplicates(features: xr.DataArray, threshold: float = NEAR) -> xr.DataArray:
    """Groups of stimuli that are linked by near duplicates: connected components of ``similarity >= threshold``.

    Parameters
    ----------
    features : DataArray (stimulus, feature), float32
        Of any space, or from `small_pictures`.
    threshold : float
        Cosine of features less their mean over stimuli, between 0 and 1.

    Returns
    -------
    DataArray (stimulus,), int64
        Number of each stimulus' group, counted in the order of stimuli; most groups hold one stimulus. For ``groups``
        of `folds`: no near duplicate is then on both sides.

    Raises
    ------
    DataError
        Features are not finite.

    Examples
    --------
    >>> from neuroenc.data import make_features
    >>> x = make_features([[1.0, 0.0], [0.0, 1.0], [0.99, 0.0], [-1.0, -1.0]], stimulus=list("abcd"))
    >>> near_duplicates(x).values.tolist()
    [0, 1, 0, 2]
    """
    check_fraction("threshold", threshold)
    unit = _directions(features)
    n, label = len(unit), np.arange(len(unit))
    for a in range(0, n, _BLOCK):
        for b in range(a, n, _CHUNK):
            i, j = np.nonzero(unit[a : a + _BLOCK] @ unit[b : b + _CHUNK].T >= np.float32(threshold))
            # Groups are merged block by block, so that a low threshold holds no list of all pairs.
            pairs = np.unique(np.stack([label[a + i], label[b + j]]), axis=1)
            graph = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(n, n))
            label = connected_components(graph, directed=False)[1][label]
    _, first, label = np.unique(label, return_index=True, return_inverse=True)
    return _labels(features, np.argsort(np.argsort(first))[label], "group")


def feature_clusters(features: xr.DataArray, n_clusters: int = 5, seed: int = 0) -> xr.DataArray:
    """Clusters of stimuli by k-means on directions of features (less their mean, at unit length).

    Parameters
    ----------
    features : DataArray (stimulus, feature), float32
    n_clusters : int
    seed : int

    Returns
    -------
    DataArray (stimulus,), int64
        For ``groups`` of `folds`, which then leaves one cluster out at a time: a test of how an encoder generalises to
        pictures of another kind.

    Raises
    ------
    DataError
        More clusters than different stimuli, or features that are not finite.

    References
    ----------
    The splits ``cluster_k5`` of re:vision, LAION-fMRI (2026).

    Examples
    --------
    >>> from neuroenc.data import make_features
    >>> x = make_features([[1.0, 0.0], [0.0, 1.0], [0.9, 0.0], [0.0, 0.8]], stimulus=list("abcd"))
    >>> a, b, c, d = feature_clusters(x, 2).values.tolist()
    >>> a == c, b == d, a != b
    (True, True, True)
    """
    unit, k = _directions(features), check_whole("n_clusters", n_clusters, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told below
        found = KMeans(k, n_init=10, random_state=seed).fit_predict(unit) if k <= len(unit) else np.zeros(len(unit))
    if len(np.unique(found)) < k:
        different = len(np.unique(unit, axis=0))
        raise DataError(f"{k} clusters of {different} different stimuli; legal is 2 to {different}.")
    return _labels(features, found, "cluster")


def _labels(features: xr.DataArray, values: np.ndarray, name: str) -> xr.DataArray:
    coords = {"stimulus": features["stimulus"].values}
    return xr.DataArray(values.astype(np.int64), dims="stimulus", coords=coords, name=name)


def matched_test(features: xr.DataArray, share: float = 0.2, seed: int = 0, n_draws: int = 200) -> list[str]:
    r"""Test stimuli whose features are distributed as those of the training stimuli.

    Of ``n_draws`` random splits the one with the smallest maximum mean discrepancy between both sides,
    :math:`\lVert \overline{\phi(x)}_{train} - \overline{\phi(x)}_{test} \rVert^2`, with random Fourier features
    :math:`\phi` of a Gaussian kernel as wide as the median distance of stimuli.

    Parameters
    ----------
    features : DataArray (stimulus, feature), float32
    share : float
        Of the stimuli, for testing.
    seed : int
    n_draws : int
        1 is a random split.

    Returns
    -------
    list of str
        Ids, for `split_by_stimulus`.

    Raises
    ------
    DataError
        A side would be empty, or features are not finite.

    References
    ----------
    Gretton et al. (2012), A kernel two-sample test, JMLR 13:723. Rahimi & Recht (2007), NeurIPS. The split ``tau`` of
    re:vision, LAION-fMRI (2026), is made for the same purpose.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.data import make_features
    >>> x = make_features(np.random.default_rng(0).standard_normal((20, 3)), stimulus=[f"s{n}" for n in range(20)])
    >>> len(matched_test(x, 0.25))
    5
    """
    check_fraction("share", share)
    check_whole("n_draws", n_draws)
    unit, rng = _directions(features).astype(np.float64), make_rng(seed)
    n = len(unit)
    held = round(share * n)
    if not 0 < held < n:
        raise DataError(f"share={share} of {n} stimuli holds out {held}; both sides need at least one.")
    some = unit[rng.permutation(n)[:500]]
    gaps = np.sqrt(np.maximum(2 - 2 * some @ some.T, 0)[np.triu_indices(len(some), 1)])
    width = float(np.median(gaps)) or 1.0
    waves = unit @ rng.standard_normal((unit.shape[1], _FREQUENCIES)) / width + rng.uniform(0, 2 * np.pi, _FREQUENCIES)
    phi, total, best = np.cos(waves), np.cos(waves).sum(axis=0), (np.inf, np.zeros(0, int))
    for _ in range(n_draws):
        rows = rng.permutation(n)[:held]
        inside = phi[rows].sum(axis=0)
        gap = float(np.square((total - inside) / (n - held) - inside / held).sum())
        best = min(best, (gap, rows), key=lambda found: found[0])
    return [str(x) for x in features["stimulus"].values[np.sort(best[1])]]


def read_split(
    path: str | os.PathLike[str], sets: Sequence[str] = (), variant: int = 0
) -> tuple[list[str] | None, dict[str, list[str]]]:
    """Training stimuli and named test sets of a file.

    Parameters
    ----------
    path : path
        A JSON file of re:vision (``variants`` with ``train_ids`` and ``test_ids``; with ``ood_types`` in ``params``
        each type is a test set); a JSON or TOML file of lists by name, of which "train" may be left out (it is then
        all other stimuli); or a CSV with the columns ``stimulus`` and ``set``.
    sets : sequence of str
        Test sets to take; empty: all.
    variant : int
        Of a re:vision file.

    Returns
    -------
    train : list of str or None
    sets : dict of name to list of str

    Raises
    ------
    DataError
        The file has another form, no test set, an unknown set, or a stimulus on both sides.

    References
    ----------
    LAION-fMRI (2026), ``laion_fmri/splits``.

    Examples
    --------
    >>> import json, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "odd.json"
    >>> _ = path.write_text(json.dumps({"faces": ["f1", "f2"], "sketches": ["s1"]}))
    >>> read_split(path, ["faces"])
    (None, {'faces': ['f1', 'f2']})
    """
    where, file = f"split {os.fspath(path)}", Path(path)
    check_readable_file(path, "split")
    if file.suffix.lower() in (".csv", ".tsv"):
        table = read_table(path, ["stimulus", "set"], what="split")
        found: Any = {str(name): part["stimulus"].tolist() for name, part in table.groupby("set", sort=False)}
    else:
        text = decode_text(file.read_bytes(), path)
        try:
            found = tomllib.loads(text) if file.suffix.lower() == ".toml" else json.loads(text)
        except ValueError as error:
            raise DataError(f"{where} cannot be read: {error}. Legal are .json, .toml and .csv.") from error
    if isinstance(found, Mapping) and "variants" in found:
        found = _revision(found, where, variant)
    lists = isinstance(found, Mapping) and all(
        isinstance(x, list) and x and all(isinstance(i, str) for i in x) for x in found.values()
    )
    if not lists or not set(found) - {"train"}:
        raise DataError(
            f"{where} holds no lists of stimulus ids by name, of which one is a test set. Next step: "
            '{"train": ["img1", ...], "test": ["img2", ...]}, or a CSV with the columns stimulus and set.'
        )
    train, tests = found.get("train"), {str(k): list(dict.fromkeys(x)) for k, x in found.items() if k != "train"}
    for name in sets:
        if name not in tests:
            raise DataError(f"{where}: {unknown_name('test set', name, tests)}")
    seen: dict[str, str] = dict.fromkeys(train or (), "train")
    for name, ids in tests.items():
        both = [i for i in ids if i in seen]
        if both:
            raise DataError(
                f"{where}: {len(both)} stimuli are in {seen[both[0]]!r} and in {name!r}, first {both[0]!r}."
            )
        seen |= dict.fromkeys(ids, name)
    return train, {name: ids for name, ids in tests.items() if not sets or name in sets}


def _revision(found: Mapping[str, Any], where: str, variant: int) -> dict[str, list[str]]:
    """Lists by name of a split file of re:vision."""
    try:
        by_number = {int(v["variant_id"]): v for v in found["variants"]}
        if variant not in by_number:
            raise DataError(f"{where}: {unknown_name('variant', str(variant), map(str, by_number))}")
        train, test = (list(by_number[variant][side]) for side in ("train_ids", "test_ids"))
        kinds = found.get("params", {}).get("ood_types", [])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: variants lack variant_id, train_ids or test_ids ({error}).") from error
    if not kinds:
        return {"train": train, str(found.get("name", "test")): test}
    lists: dict[str, list[str]] = {"train": train}
    for name in test:
        kind = re.search(r"_OOD_([A-Za-z0-9-]+)_", name)
        lists.setdefault(kind.group(1) if kind and kind.group(1) in kinds else "other", []).append(name)
    return lists
