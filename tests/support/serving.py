"""An encoder for tests of what serves encoders: its responses are weights on the colours of a 3 x 3 grid."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import xarray as xr


class ColourPredictor:
    """Predicts ``z`` of ``n_voxels`` voxels of V1, FFA and PPA; ``placed`` puts them on fsaverage5.

    Those at the positions ``unknown`` have no number. In other units than z, values lie around 40.
    """

    def __init__(self, n_voxels=30, placed=True, seed=0, unknown=None, units="z"):
        self.unknown = unknown
        rng = np.random.default_rng(seed)
        self.weights = rng.standard_normal((27, n_voxels)).astype(np.float32)
        coords = {"voxel": np.arange(100, 100 + n_voxels)}
        coords["roi"] = ("voxel", np.array(["V1", "FFA", "PPA"] * n_voxels)[:n_voxels])
        if placed:
            coords["vertex"] = ("voxel", rng.permutation(10242)[:n_voxels])
            coords["hemi"] = ("voxel", np.array(["L", "R"] * n_voxels)[:n_voxels])
        r = np.linspace(-0.1, 0.8, n_voxels)
        scores = {"r": ("voxel", r), "noise_ceiling_r": ("voxel", np.clip(r + 0.2, 0.1, 1))}
        self.voxels = xr.Dataset(scores, coords=coords, attrs={"space": "fsaverage5"} if placed else {})
        self.card = SimpleNamespace(
            title="Colours",
            features={"colours": {}},
            reads_pictures=True,
            subject="nobody",
            dataset="made up",
            meaning="1 is one standard deviation.",
            units=units,
            zscored="session" if units == "z" else "none",
            pictures="none",
            n_fit=100,
            n_test=20,
            split="by stimulus",
            licence="BSD-3-Clause",
            citation="",
            limits=("anything",),
        )

    def predict(self, stimuli):
        rows = []
        for name in stimuli.ids:
            image = stimuli.image(str(name)).convert("RGB").resize((3, 3))
            rows.append(np.asarray(image, np.float32).ravel() / 255 - 0.5)
        coords = {"stimulus": stimuli.ids, **self.voxels.coords}
        predicted = np.stack(rows) @ self.weights + (0 if self.card.units == "z" else 40)
        if self.unknown is not None:
            predicted[:, self.unknown] = np.nan
        return xr.DataArray(predicted, dims=("stimulus", "voxel"), coords=coords)
