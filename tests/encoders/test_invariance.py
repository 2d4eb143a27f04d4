"""Invariance: planted on what is pooled and on what is local, and on what of a word is left by a perturbation."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import ndimage

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import Stimuli, perturb_text
from neuroenc.encoders import invariance, invariance_index
from neuroenc.encoders._invariance import transform_stimuli


def pictures(n=60, side=40, seed=0):
    rng = np.random.default_rng(seed)
    grey = ndimage.gaussian_filter(rng.random((n, side, side)), (0, 1.5, 1.5))
    grey = (grey - grey.min()) / np.ptp(grey) * rng.uniform(0.9, 1, (n, 1, 1))
    return Stimuli([f"p{i}" for i in range(n)], np.repeat((grey * 255).astype(np.uint8)[..., None], 3, axis=-1))


class Planted:
    """Three voxels: mean brightness, brightness at the centre, and brightness off the centre."""

    def predict(self, images):
        y = np.stack([images.mean((1, 2)), images[:, 18:22, 18:22].mean((1, 2)), images[:, 4:8, 20:24].mean((1, 2))], 1)
        return xr.DataArray(
            y, dims=("stimulus", "voxel"), coords={"voxel": [7, 8, 9], "roi": ("voxel", ["a", "b", "b"])}
        )


def grey(stimuli):
    return np.asarray(stimuli.images, float)[..., 0]


def test_a_pooling_voxel_is_invariant_and_local_ones_are_not():
    found = invariance(Planted(), grey, pictures())
    table = found["invariance"]
    assert table.sel(voxel=7).min() > 0.95
    assert (table.sel(transform="translation")[1:] < 0.75).all()
    # The centre stays under scale and rotation, a place off the centre moves.
    for name in ("scale", "rotation"):
        assert table.sel(transform=name, voxel=8) > table.sel(transform=name, voxel=9) + 0.15
    assert found["roi"].values.tolist() == ["a", "b", "b"]
    assert (found["shift"].sel(voxel=7) < found["shift"].sel(voxel=9)).all()


def test_transforms_are_where_they_say():
    image = np.full((1, 40, 40, 3), 0, np.uint8)
    image[0, 10:14, 10:14] = 255
    stimuli = Stimuli(["dot"], image)

    def centre(found):
        weight = np.clip(grey(found)[0] - 30, 0, None)
        return [float((weight.sum(k) @ np.arange(40)) / weight.sum()) for k in (0, 1)]  # x, y

    np.testing.assert_allclose(centre(transform_stimuli(stimuli, "translation", (0.25, 0.0))), [21.5, 11.5], atol=0.2)
    np.testing.assert_allclose(centre(transform_stimuli(stimuli, "scale", 1.5)), [7.25, 7.25], atol=0.3)
    turned = centre(transform_stimuli(stimuli, "rotation", 90.0))  # counter-clockwise: from upper left to lower left
    np.testing.assert_allclose(turned, [11.5, 27.5], atol=0.3)
    with pytest.raises(ConfigError, match="rotation"):
        invariance(Planted(), grey, pictures(4), {"rotate": (5.0,)})


def words(n=80, seed=0):
    rng = np.random.default_rng(seed)
    made = {"".join(rng.choice(list("abcdefghijklmnop"), rng.integers(5, 11))) for _ in range(2 * n)}
    return sorted(made)[:n]


class Reader:
    """Three voxels: letters "a" to "d" whatever their order, exact strings, and nothing that varies."""

    def predict(self, captions):
        texts = [several[0] for several in captions]
        y = [[sum(map(t.count, "abcd")), hash_of(t), 1.0] for t in texts]
        coords = {"voxel": [7, 8, 9], "roi": ("voxel", ["a", "b", "b"])}
        return xr.DataArray(np.array(y, float), dims=("stimulus", "voxel"), coords=coords)


def hash_of(text):
    return np.random.default_rng(list(text.encode())).random()


def test_what_scrambling_keeps_is_invariant_and_exact_strings_are_not():
    def captions(stimuli):
        return stimuli.captions

    texts = words()
    found = invariance_index(Reader(), captions, texts, "scramble", n_bootstraps=200)
    assert found["voxel"].values.tolist() == [7, 8, 9]
    assert found["roi"].values.tolist() == ["a", "b", "b"]
    assert found["r_perturbed"][0] == pytest.approx(1)
    assert found["low"][0] > 0.5
    assert found["low"][1] < 0 < found["high"][1]
    assert np.isnan(found["index"][2])
    # The same by numpy, with another perturbation as the control.
    against = invariance_index(Reader(), captions, texts, "typo", rate=0.2, other="scramble", n_bootstraps=50, seed=3)
    y = [
        Reader().predict([[t] for t in some]).values[:, :2]
        for some in (texts, perturb_text(texts, "typo", 0.2, seed=3), perturb_text(texts, "scramble", seed=3))
    ]
    r = [[np.corrcoef(y[0][:, v], other[:, v])[0, 1] for v in range(2)] for other in y[1:]]
    np.testing.assert_allclose(against["index"][:2], np.subtract(*r), atol=1e-12)
    assert (against["low"][:2] <= against["index"][:2]).all()
    few = invariance_index(Reader(), captions, texts, "scramble", n_bootstraps=200, batch_size=7)
    xr.testing.assert_allclose(few, found)


@pytest.mark.parametrize(
    ("texts", "options", "match"),
    [
        (["one", "two", "six"], {"kind": "typos"}, "'typo'"),
        (["one", "two", "six"], {"other": "words"}, "text"),
        (["one", "two", "six"], {"other": "typo"}, "both"),
        (["one", "two", "two"], {}, "2 of them different"),
        (["one", "two", "a"], {"kind": "scramble"}, "1 of 3 texts stay"),
        (["one", "two", "six"], {"size": 300}, "does not fit"),
    ],
)
def test_what_cannot_be_compared_is_refused(texts, options, match):
    with pytest.raises((ConfigError, DataError), match=match):
        invariance_index(Reader(), lambda stimuli: stimuli.captions, texts, **options)
