"""Small planted populations: which space drives a voxel is known."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neuroenc.data import make_features, make_responses


def spaces(n=200, p=6, names=("a", "b", "c"), seed=0):
    rng = np.random.default_rng(seed)
    ids = [f"s{i:04d}" for i in range(n)]
    return {name: make_features(rng.standard_normal((n, p)).astype("float32"), stimulus=ids) for name in names}


def driven(features, drives, noise=1.0, seed=1):
    """Responses; ``drives[v]`` maps names of spaces to the share of voxel v's signal that they give."""
    rng = np.random.default_rng(seed)
    ids = next(iter(features.values()))["stimulus"].values
    Y = noise * rng.standard_normal((len(ids), len(drives)))
    for v, drive in enumerate(drives):
        for name, share in drive.items():
            X = features[name].values
            Y[:, v] += share * X @ rng.standard_normal(X.shape[1]) / np.sqrt(X.shape[1])
    roi = ["+".join(sorted(d)) or "none" for d in drives]
    return make_responses(Y.astype("float32"), stimulus=ids, dim="stimulus", roi=roi)


def of_two_subjects(responses, seed=3):
    """The first half of the voxels saw 60 % of the stimuli, the second the rest and some of these."""
    rng = np.random.default_rng(seed)
    n, v = responses.shape
    order = rng.permutation(n)
    values = responses.values.copy()
    values[np.ix_(order[int(0.6 * n) :], np.arange(v // 2))] = np.nan
    values[np.ix_(order[: int(0.4 * n)], np.arange(v // 2, v))] = np.nan
    out = responses.copy(data=values)
    subject = np.repeat(["one", "two"], [v // 2, v - v // 2])
    return out.assign_coords(subject=("voxel", subject))


@pytest.fixture
def planted():
    features = spaces()
    drives = [{"a": 1.0}] * 6 + [{"b": 1.0}] * 6 + [{}] * 4
    return features, driven(features, drives)


def numbers(comparison) -> xr.Dataset:
    """All scores, to be compared."""
    return comparison.scores.load()
