"""Zero-shot accuracy of regions: planted images, regions that overlap, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import category_accuracy

LISTS = {"face": ["face", "head"], "place": ["house"], "food": ["pizza"]}


def embed_text(texts):
    """A direction for each category, and one that all texts share."""
    at = ["face" in t or "head" in t for t in texts], ["house" in t for t in texts], ["pizza" in t for t in texts]
    return np.stack([*np.asarray(at, float), np.full(len(texts), 0.3)], axis=1)


def of(told, rois):
    """Two images of each voxel, whose categories ``told`` names, and their vectors."""
    kinds = [name for pair in told for name in pair]
    ids = [f"s{k}" for k in range(len(kinds))]
    table = pd.DataFrame({"voxel": np.repeat(np.arange(len(told)), 2), "stimulus": ids, "roi": np.repeat(rois, 2)})
    vectors = np.eye(4)[[list(LISTS).index(k) for k in kinds]] + 0.2
    return table, xr.DataArray(vectors, dims=("stimulus", "feature"), coords={"stimulus": ids})


def test_shares_of_a_regions_images_and_of_other_voxels_images():
    told = [("face", "face")] * 8 + [("face", "place")] * 8 + [("place", "place")] * 8
    images, vectors = of(told, ["FFA"] * 8 + ["FFA;mine"] * 8 + ["PPA"] * 8)
    shuffled = vectors.isel(stimulus=np.random.default_rng(0).permutation(48))
    found = category_accuracy(images, shuffled, embed_text, categories=LISTS, preferred={"mine": "place"})
    table = found.set_index("roi")
    assert table["accuracy"].to_dict() == {"FFA": 0.75, "PPA": 1.0, "mine": 0.5, "all": 0.75}
    assert table["n_voxels"].to_dict() == {"FFA": 16, "PPA": 8, "mine": 8, "all": 24}
    assert table.loc["FFA", "n_images"] == 32
    assert (table["chance"] == 1 / 3).all()
    # Half of all images are faces: what other voxels show, whatever chance says.
    assert table["other_voxels"].drop("all").between(0.48, 0.52).all()
    assert table.loc["FFA", "p"] < 0.01
    assert table.loc["mine", "p"] > 0.3
    assert ((table["low"] < table["accuracy"]) & (table["accuracy"] <= table["high"])).all()


def test_a_single_region_has_no_p_and_regions_without_a_category_no_row():
    images, vectors = of([("face", "face")] * 4, ["FFA"] * 4)
    found = category_accuracy(images, vectors, embed_text, categories=LISTS)
    assert found["p"].isna().all()
    assert len(category_accuracy(images.assign(roi="V1"), vectors, embed_text, categories=LISTS)) == 0


def test_what_does_not_fit_is_refused():
    images, vectors = of([("face", "place")] * 4, ["FFA"] * 4)
    with pytest.raises(ConfigError, match=r"unknown category 'faces'.*face"):
        category_accuracy(images, vectors, embed_text, categories=LISTS, preferred={"FFA": "faces"})
    with pytest.raises(DataError, match=r"2 of 8 images have no vector \(first: 's6'\)"):
        category_accuracy(images, vectors.isel(stimulus=slice(6)), embed_text, categories=LISTS)
    with pytest.raises(DataError, match="8 of 8 images have vectors that are zero"):
        category_accuracy(images, 0 * vectors, embed_text, categories=LISTS)
    with pytest.raises(DataError, match="ImageEmbedder"):
        category_accuracy(images, vectors.values, embed_text, categories=LISTS)
