"""Receptive fields as retinotopy: planted ones come back, and the report shows both."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.encoders.readout import compare_retinotopy, retinotopy
from neuroenc.report import comparison_sections


def fields(x, y, size):
    return xr.Dataset({k: ("voxel", np.asarray(v, float)) for k, v in {"x": x, "y": y, "size": size}.items()})


def test_angles_and_eccentricities_are_the_fields():
    found = retinotopy(fields([1, 0, -1, 0], [0, -1, 0, 1], [0.1] * 4), width=10)
    np.testing.assert_allclose(np.abs(found["polar_angle"]), [0, 90, 180, 90])
    assert found["polar_angle"].values[[1, 3]].tolist() == [90.0, -90.0]  # up, down
    np.testing.assert_allclose(found["eccentricity"], 5)
    np.testing.assert_allclose(found["size"], 0.5)
    assert found["eccentricity"].attrs["units"] == "degrees"
    with pytest.raises(DataError, match="size"):
        retinotopy(fields([0], [0], [0]).drop_vars("size"))


def test_agreement_is_by_angle_and_rank():
    rng = np.random.default_rng(0)
    x, y, size = rng.uniform(-1, 1, (3, 40))
    planted = retinotopy(fields(x, y, size))
    near = retinotopy(fields(x + 0.01 * rng.standard_normal(40), y, size))
    far = retinotopy(fields(*rng.permutation(np.stack([x, y, size]), axis=1)))
    assert compare_retinotopy(near, planted)["angle_error"] < 5
    assert compare_retinotopy(near, planted)["eccentricity_r"] > 0.95
    assert compare_retinotopy(far, planted)["angle_error"] > 30
    turned = retinotopy(fields([-1.0, -1.0, -1.0], [0.01, 0.02, 0.03], [1, 2, 3]))
    back = retinotopy(fields([-1.0, -1.0, -1.0], [-0.01, -0.02, -0.03], [1, 2, 3]))
    assert compare_retinotopy(turned, back)["angle_error"] < 4  # across 180 degrees


def test_the_report_shows_fields_beside_planted_ones():
    rng = np.random.default_rng(0)
    cells = {"cell": ["conv/gaussian"]}
    roi = ("voxel", ["V1", "V1", "V1", "V4", "V4", "V4"])
    scores = xr.Dataset({"r": (("cell", "voxel"), rng.random((1, 6)))}, coords={**cells, "roi": roi})
    row = {"kind": "all", "group": "all", "n_voxels": 6, "median_r": 0.3, "low": 0.2, "high": 0.4}
    table = pd.DataFrame({**cells, **row, "features": "conv", "core": "", "readout": "gaussian", "n_parameters": [8]})
    own = retinotopy(fields(*rng.uniform(-1, 1, (3, 6)))).assign_attrs(cell="conv/gaussian")
    sections = {s.id: s for s in comparison_sections(scores, table=table, fields=own, planted_fields=own)}
    shown = sections["fields"].blocks
    assert len(shown) == 7  # three maps twice, and the table of groups
    groups = shown[-1].table.set_index("group")
    assert groups.loc["V4", "angle_error"] == 0
