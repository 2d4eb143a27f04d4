"""Joined feature spaces of a config: dense captions beside single ones, or beside an image layer, on one grid."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import simulate_world
from neuroenc.study.read import parse_config
from neuroenc.study.stages.compare import cells_of
from neuroenc.study.stages.load import join_features, make_spaces, with_joined

FEATURES = {
    "clip": {"model": "world", "layers": ["layer2", "layer3"]},
    "dense": {"kind": "dense", "model": "world", "grid": 4},
    "single": {"kind": "captions", "model": "world"},
    "both": {"spaces": ["dense", "single"], "grid": 4},
    "seen": {"spaces": ["dense", "clip.layer3"], "grid": 6},
}


def array(values):
    dims = ("stimulus", "feature") if values.ndim == 2 else ("stimulus", "channel", "y", "x")
    return xr.DataArray(values, dims=dims, coords={"stimulus": [f"s{k}" for k in range(len(values))]})


def test_maps_and_vectors_stand_side_by_side():
    rng = np.random.default_rng(0)
    fine, coarse, vector = rng.random((3, 2, 8, 8)), rng.random((3, 5, 2, 2)), rng.random((3, 4))
    found = join_features({"fine": array(fine), "coarse": array(coarse), "vector": array(vector)[::-1]}, 4)
    assert found.shape == (3, 11, 4, 4)
    assert found["space"].values.tolist() == ["fine"] * 2 + ["coarse"] * 5 + ["vector"] * 4
    np.testing.assert_allclose(found[:, :2], fine.reshape(3, 2, 4, 2, 4, 2).mean((3, 5)), atol=1e-6)
    np.testing.assert_allclose(found[:, 7:, 1, 2], vector, atol=1e-6)  # matched by label, the same in every cell
    assert float(np.ptp(found[:, 7:].values, axis=(2, 3)).max()) == 0
    plain = join_features({"a": array(vector), "b": array(vector)}, 4)
    assert plain.dims == ("stimulus", "feature")
    with pytest.raises(DataError, match="tokens"):
        join_features({"t": xr.DataArray(rng.random((3, 2, 2)), dims=("stimulus", "token", "feature"))}, 4)


def test_a_config_joins_spaces_into_cells():
    config = parse_config(
        {"data": {"name": "world"}, "features": FEATURES, "compare": {"readouts": {"factorized": {}}}}
    )
    assert config.features["both"].kind == "join"
    wanted = with_joined(config.features, {"both", "seen"})
    assert set(wanted) == {"both", "seen", "dense", "single", "clip.layer3"}
    spaces = make_spaces(wanted, simulate_world(3), False)
    assert spaces["both"].shape == (3, 256, 4, 4)
    assert spaces["seen"].shape[2:] == (6, 6)
    assert "both/factorized" in [cell.name for cell in cells_of(config.compare, config.features)]
    with pytest.raises(ConfigError, match="dense"):
        parse_config({"data": {"name": "world"}, "features": {**FEATURES, "both": {"spaces": ["dens", "single"]}}})
    with pytest.raises(ConfigError, match="two spaces"):
        parse_config({"data": {"name": "world"}, "features": {**FEATURES, "both": {"spaces": ["dense"]}}})
