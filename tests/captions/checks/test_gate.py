"""The gate before captions."""

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import gate_voxels


@pytest.fixture
def scores():
    return xr.Dataset(
        {
            "r": ("voxel", [0.5, 0.4, -0.3, np.nan, 0.2]),
            "q_value": ("voxel", [0.001, 0.2, 0.001, 1.0, 0.01]),
            "noise_ceiling_r": ("voxel", [0.8, 0.8, 0.8, 0.8, 0.1]),
        },
        coords={"voxel": [3, 4, 5, 6, 7], "roi": ("voxel", ["FFA", "FFA;OFA", "PPA", "FFA", "PPA"])},
    )


def test_every_voxel_that_is_held_back_has_a_reason(scores):
    gate = gate_voxels(scores, min_ceiling_r=0.3)
    assert gate["captioned"].tolist() == [True, False, False, False, False]
    assert gate["reason"].tolist() == [
        "",
        "not predicted above chance (q = 0.20)",
        "predicted below zero",
        "no score (r is not a number)",
        "noise ceiling too low (0.10)",
    ]
    assert gate["voxel"].tolist() == [3, 4, 5, 6, 7]


def test_regions_and_no_gate(scores):
    assert gate_voxels(scores, "roi", rois=["FFA"])["captioned"].tolist() == [True, True, False, False, False]
    assert gate_voxels(scores, "none")["captioned"].tolist() == [True, True, True, False, True]
    assert gate_voxels(scores, rois=["PPA"])["reason"].tolist()[0] == "outside PPA"


def test_a_gate_without_what_it_needs_is_refused(scores):
    with pytest.raises(DataError, match="q_value"):
        gate_voxels(scores.drop_vars("q_value"))
    with pytest.raises(ConfigError, match="gate 'p'"):
        gate_voxels(scores, "p")
    with pytest.raises(ConfigError, match="regions"):
        gate_voxels(scores, "roi")
    with pytest.raises((ConfigError, DataError), match="FFB"):
        gate_voxels(scores, "roi", rois=["FFB"])
