"""Depth of concepts and of voxels' responses: points by hand, labels, arms, what is refused."""

import itertools

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import concept_depth
from neuroenc.encoders._depth import convergence_point, jump_point, variation_rate

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 240))
LAYERS = {"pixels": np.c_[A, B], "middle": np.c_[A, B, A * B], "late": np.c_[A * B, B, A]}
QUICK = {"n_bootstraps": 40, "cv": 3}


def by_hand(scores, floor):
    """Jump and convergence points as the paper words them, one layer after the other."""
    raised = [max(s, floor) for s in scores]
    rates = [b / a for a, b in itertools.pairwise(raised)]
    last = len(scores) - 1
    jump = next((k + 1 for k, b in enumerate(rates) if b >= 1.1), np.nan) / last
    still = [k for k in range(last) if all(abs(b - 1) < 0.03 for b in rates[k:])]
    return jump, (still[0] / last if still else np.nan)


def test_points_are_those_of_the_paper():
    rng = np.random.default_rng(1)
    curves = np.cumsum(rng.choice([0.0, 0.004, 0.1], (6, 300), p=[0.5, 0.3, 0.2]), axis=0) + rng.uniform(-0.1, 0.5, 300)
    rate = variation_rate(curves, 0.05)
    expected = np.array([by_hand(c, 0.05) for c in curves.T]).T
    np.testing.assert_allclose(jump_point(rate), expected[0])
    np.testing.assert_allclose(convergence_point(rate), expected[1])
    assert np.isnan(expected).any(axis=1).all()


def test_accuracy_is_scikit_learns():
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.metrics import balanced_accuracy_score

    kind = np.where(A * B > 0.8, "x", np.where(B > 0.3, "y", "z"))
    halves = [(np.arange(0, 240, 2), np.arange(1, 240, 2)), (np.arange(1, 240, 2), np.arange(0, 240, 2))]
    found = concept_depth(LAYERS, {"kind": kind}, cv=halves, n_bootstraps=40)
    for name, X in LAYERS.items():
        guess = np.empty(240, dtype="U1")
        for train, test in halves:
            mean, scale = X[train].mean(0), X[train].std(0)
            model = RidgeClassifierCV(np.logspace(-1, 5, 7), class_weight="balanced")
            guess[test] = model.fit((X[train] - mean) / scale, kind[train]).predict((X[test] - mean) / scale)
        assert abs(float(found["score"].sel(layer=name)[0]) - balanced_accuracy_score(kind, guess)) < 0.01
    assert float(found["chance"][0]) == pytest.approx(1 / 3)
    assert (found["score_low"] <= found["score"]).all()


def test_labels_and_responses_are_matched_by_stimulus():
    ids = np.array([f"s{k}" for k in range(240)])
    spaces = {k: make_features(x.astype("float32"), stimulus=ids)[::-1] for k, x in LAYERS.items()}
    table = pd.DataFrame({"xor": A * B > 0, "first": A > 0}, index=ids)
    plain = concept_depth(LAYERS, {"xor": A * B > 0, "first": A > 0}, **QUICK)
    assert plain["target"].values.tolist() == ["xor", "first"]
    assert float(plain["jump_point"][0]) == 0.5
    assert np.isnan(float(plain["jump_point"][1]))
    assert bool(plain["flat"][1])
    named = concept_depth(spaces, table, **QUICK)
    assert float(named["jump_point"][0]) == 0.5
    Y = np.c_[A * B, A, A * B, RNG.standard_normal(240)] + RNG.standard_normal((240, 4)) / 2
    voxels = make_responses(Y, stimulus=ids, dim="stimulus", roi=["V4", "V1", "V4", ""])
    found = concept_depth(spaces, voxels, **QUICK)
    assert found["score"].dims == ("layer", "voxel")
    assert found["roi"].values.tolist() == ["V4", "V1", "V4", ""]
    assert found["statement"].values[0].startswith("jumps at middle")
    regions = concept_depth(spaces, voxels, by="region", **QUICK)
    assert regions["target"].values.tolist() == ["all", "V1", "V4"]
    np.testing.assert_allclose(regions["score"].sel(target="V1"), found["score"][:, 1])
    again = concept_depth(spaces, voxels, by="region", **QUICK)
    xr.testing.assert_identical(regions, again)


def test_probes_and_arms():
    target = {"xor": A * B > 0}
    logistic = concept_depth(LAYERS, target, probe="logistic", **QUICK)
    assert float(logistic["score"].sel(layer="late")[0]) > 0.9
    clean = concept_depth(LAYERS, target, **QUICK)["score"].max()
    assert float(concept_depth(LAYERS, target, noise=2.0, **QUICK)["score"].max()) < float(clean) - 0.1
    fine = concept_depth(LAYERS, target, n_bits=12, **QUICK)
    assert abs(float(fine["score"].max() - clean)) < 0.02
    assert fine.attrs["n_bits"] == 12


@pytest.mark.parametrize(
    ("layers", "targets", "how", "said"),
    [
        ({"one": LAYERS["late"]}, A > 0, {}, "two layers or more"),
        (LAYERS, A[:100] > 0, {}, "layer 'pixels' has 240 rows, the targets 100"),
        (LAYERS, np.zeros(240, int), {}, "one label only"),
        (LAYERS, np.where(np.arange(240) == 7, "rare", "often"), {}, "label 'rare'"),
        (LAYERS, {"a": A > 0, "b": A[:9] > 0}, {}, "a 240, b 9"),
        (LAYERS, np.where(A > 2, np.nan, A)[:, None], {}, "1 of 1 voxels hold NaN"),
        (LAYERS, A > 0, {"by": "regions"}, "did you mean 'region'"),
        (LAYERS, A > 0, {"by": "region"}, "labels have no regions"),
        (LAYERS, A > 0, {"probe": "ridgee"}, "did you mean 'ridge'"),
        (LAYERS, A > 0, {"noise": -1.0}, "noise"),
        (LAYERS, A > 0, {"n_bits": 0}, "n_bits"),
        (LAYERS, A > 0, {"cv": 1}, "cv"),
    ],
)
def test_what_is_refused(layers, targets, how, said):
    with pytest.raises((DataError, ConfigError), match=said):
        concept_depth(layers, targets, **{**QUICK, **how})
