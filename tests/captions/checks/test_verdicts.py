"""Verdicts of controls: on tables of checks, and on each voxel's best caption."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc.captions import CaptionStudy
from neuroenc.captions._study import verdict, with_verdicts


def study(**tables):
    voxels = [3, 1, 2]
    said = pd.DataFrame({"voxel": np.repeat(voxels, 2), "rank": [1, 2] * 3, "caption": list("abcdef"), "score": 0.1})
    own = tables.pop("captions", None)
    return CaptionStudy(
        "x",
        xr.Dataset({"r": ("voxel", [0.5, 0.4, 0.3])}, coords={"voxel": voxels}),
        captions=said if own is None else own(said),
        evidence=pd.DataFrame(columns=["voxel", "rank", "stimulus", "predicted"]),
        gate=pd.DataFrame({"voxel": voxels, "captioned": True, "reason": ""}),
        **tables,
    )


def test_a_best_caption_that_does_not_exceed_its_controls_is_named_with_them():
    sentence = pd.DataFrame(
        {
            "voxel": [1, 2, 3],
            "rho": [0.2, 0.1, 0.3],
            "shuffled": [0.0, 0.0, 0.0],
            "shuffled_within_roi": [0.1, 0.1, 0.0],
        }
    )
    stability = pd.DataFrame({"voxel": [2, 3], "folds": [0.2, 0.9], "folds_null": [0.3, 0.3]})

    def trip(said):
        return said.assign(round_trip=[0.9, np.nan, 0.5, np.nan, 0.2, np.nan], round_trip_shuffled=0.5)

    found = study(sentence=sentence, stability=stability, captions=trip)
    assert found.failed_controls().to_dict() == {
        3: "",
        1: "round trip",
        2: "sentence-level score; round trip; stability, folds",
    }
    marked = found.judged().captions
    assert marked.loc[marked["rank"] == 2, "fails"].eq("").all()
    assert marked.loc[marked["rank"] == 1, "fails"].tolist() == found.failed_controls().tolist()
    # Nothing was measured: nothing is marked, and nothing passes for measured.
    assert study().failed_controls().isna().all()
    assert "fails" not in study().judged().captions


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("sentence-level scores", {"mean": 0.1, "p": 0.01}, "above other voxels' captions (p = 0.01)"),
        ("sentence-level scores", {"mean": 0.1, "p": 0.3}, "not above other voxels' captions (p = 0.3)"),
        ("round trip", {"mean percentile": 0.6, "p": float("nan")}, "not measured"),
        ("stability", {"low": 0.3, "high": 0.5, "shuffled_weights": 0.2}, "above shuffled weights"),
        ("stability", {"low": 0.1, "high": 0.5, "shuffled_weights": 0.2}, "not above shuffled weights"),
        ("hallucination rate", {"low": 0.1, "high": 0.2, "chance": 0.6}, "below chance"),
        ("hallucination rate", {"low": 0.5, "high": 0.7, "chance": 0.6}, "not below chance"),
    ],
)
def test_tables_say_what_their_controls_say(name, row, said):
    assert with_verdicts(name, pd.DataFrame([row]))["verdict"].tolist() == [said]


def test_fitted_beside_shuffled_weights_and_tables_without_controls():
    both = ["fitted weights", "shuffled weights"]
    spread = {"semantic_variance_low": [0.5, 0.1], "semantic_variance_high": [0.6, 0.2]}
    found = with_verdicts("diversity", pd.DataFrame({"captions": both, **spread}))
    assert found["verdict"].tolist() == ["above shuffled weights", "the control"]
    planted = pd.DataFrame({"weights": both, "n": [20, 20], "family_named": [0.5, 0.45]})
    assert with_verdicts("planted selectivity", planted)["verdict"].iloc[0] == "not above shuffled weights"
    other = pd.DataFrame({"x": [1]})
    assert with_verdicts("mine", other) is other
    assert verdict("chance") == "not measured"
