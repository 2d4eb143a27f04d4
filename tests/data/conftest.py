"""One small, fully labelled set of responses for the tests of this room."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neuroenc.data import make_responses

AFFINE = np.array([[-2.0, 0.1, 0, 30], [0.1, 2, 0, -40], [0, 0, 3, -20], [0, 0, 0, 1]])


@pytest.fixture
def responses() -> xr.DataArray:
    """60 presentations of 20 stimuli in 3 sessions of 2 runs, 7 voxels, with session gain and offset."""
    rng = np.random.default_rng(3)
    session = np.repeat([1, 2, 3], 20)
    gain, offset = np.array([1.0, 4.0, 0.2])[session - 1], np.array([0.0, 12.0, -3.0])[session - 1]
    values = rng.standard_normal((60, 7)) * gain[:, None] + offset[:, None]
    return make_responses(
        values,
        stimulus=[f"s{n:02d}" for n in np.concatenate([rng.permutation(20) for _ in range(3)])],
        subject="sub-01",
        session=session,
        run=np.tile(np.repeat([1, 2], 10), 3),
        voxel=np.arange(7) * 10,
        ijk=np.argwhere(np.ones((2, 2, 2)))[:7],
        vertex=np.arange(7) * 3,
        hemi=["L"] * 4 + ["R"] * 3,
        roi=["V1", "V1;V2", "", ["FFA", "OFA"], "FFA", "", "PPA"],
        ncsnr=np.linspace(0, 1, 7),
        space="func",
        affine=AFFINE,
        volume_shape=(2, 2, 2),
        source="a test",
        licence="CC0-1.0",
    )
