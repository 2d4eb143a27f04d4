from __future__ import annotations

import numpy as np
import pytest
import xarray as xr


class Planted:
    """Six concepts in an image-text space with a modality gap, and an encoder fitted to noisy voxels."""

    names = ("face", "house", "dog", "pizza", "sign", "hand")

    def __init__(self, seed: int = 0, d: int = 48, n: int = 1500, voxels: int = 60) -> None:
        rng = np.random.default_rng(seed)
        basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
        concept, gap_image, gap_text = basis[:6], basis[6], basis[7]
        kind = rng.integers(0, 6, n)
        noise = 0.15 * rng.standard_normal((n, d))
        self.images = (gap_image + 0.6 * concept[kind] + noise) * rng.uniform(8, 12, (n, 1))
        self.kind = kind
        self.captions = [f"{a} {x}" for x in self.names for a in ("a", "a photo of a", "one small")]
        text_kind = np.repeat(np.arange(6), 3)
        self.texts = gap_text + 0.6 * concept[text_kind] + 0.1 * rng.standard_normal((18, d))
        self.gap_image, self.gap_text = gap_image, gap_text
        self.prefers = rng.integers(0, 6, voxels)
        x = self.images / np.linalg.norm(self.images, axis=1, keepdims=True)
        y = (kind[:, None] == self.prefers) + rng.standard_normal((n, voxels))
        xc, yc = x - x.mean(0), y - y.mean(0)
        coef = np.linalg.solve(xc.T @ xc + 5 * np.eye(d), xc.T @ yc)
        coords = {
            "voxel": 100 + np.arange(voxels),
            "roi": ("voxel", ["FFA;OFA" if p == 0 else "PPA" for p in self.prefers]),
            "i": ("voxel", np.arange(voxels)),
        }
        self.coef = xr.DataArray(coef.astype(np.float32), dims=("feature", "voxel"), coords=coords)
        self.intercept = xr.DataArray(y.mean(0) - x.mean(0) @ coef, dims="voxel", coords=coords)
        ids = [f"im{i:04d}" for i in range(n)]
        self.bank = xr.DataArray(self.images.astype(np.float16), dims=("stimulus", "feature"), coords={"stimulus": ids})

    def to_linear(self):
        return self.coef, self.intercept

    def named(self, frame) -> float:
        """Share of voxels whose best caption names the concept they prefer."""
        best = frame[frame["rank"] == 1].set_index("voxel")["caption"]
        hits = [self.names[p] in best[v] for v, p in zip(self.coef["voxel"].values, self.prefers) if v in best]
        return float(np.mean(hits))


@pytest.fixture(scope="module")
def planted():
    return Planted()
