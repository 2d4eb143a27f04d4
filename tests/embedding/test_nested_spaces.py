"""Nested spaces: linear heads of frozen models whose first dimensions and shallow layers are spaces too."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import Stimuli, simulate_world
from neuroenc.embedding import ImageEmbedder, TextEmbedder, train_space

QUIET = {"progress": False}
HOW = {"base": "world", "layers": ["block1", "block0"], "dims": 32, "epochs": 3, **QUIET}


@pytest.fixture(scope="module")
def world():
    return simulate_world(80, seed=11)


@pytest.fixture(scope="module")
def nested(world, tmp_path_factory):
    """A space of texts and pictures, trained on the first 60 scenes."""
    out = str(tmp_path_factory.mktemp("spaces") / "nested")
    train_space("nested", world, out, held_out=world.ids[60:], images=True, image_model="world", **HOW)
    return out


def test_first_dimensions_are_those_of_the_whole_vector(nested, world):
    texts = [c[0] for c in world.captions[:20]]
    whole = TextEmbedder(nested, **QUIET)
    assert whole.layers() == (
        *("block0", "block0-first16", "block0-first8", "block1", "block1-first16", "block1-first8"),
        *("first16", "first8"),
    )
    found = TextEmbedder(nested, layer="first8", **QUIET).embed(texts)
    assert found.attrs["layer"] == "first8"
    assert found.attrs["normalised"] == 1
    np.testing.assert_allclose(found.values, unit_rows(whole.embed(texts).values[:, :8]), atol=1e-6)
    shallow = TextEmbedder(nested, layer="block0", **QUIET).embed(texts).values
    part = TextEmbedder(nested, layer="block0-first16", **QUIET).embed(texts).values
    np.testing.assert_allclose(part, unit_rows(shallow[:, :16]), atol=1e-6)
    # Read from the cache, and of unit norm also as means over captions.
    assert np.array_equal(found.values, TextEmbedder(nested, layer="first8", **QUIET).embed(texts).values)
    means = TextEmbedder(nested, layer="first8", normalise=True, **QUIET).embed_captions(world.sel(world.ids[:5]))
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 1, atol=1e-6)


def test_pictures_are_nested_too(nested, world):
    made = ImageEmbedder(nested, layers=["first8", "first16"], **QUIET).embed_layers(world)
    whole = ImageEmbedder(nested, **QUIET).embed(world)
    np.testing.assert_allclose(made["first8"].values, unit_rows(whole.values[:, :8]), atol=1e-6)
    assert made["first16"].shape == (80, 16)
    assert made["first16"]["trained_on"].values.sum() == 60
    assert not made["first16"]["trained_on"].values[60:].any()
    one = ImageEmbedder(nested, layer="first8", cache=False, **QUIET).embed(world)
    np.testing.assert_array_equal(one.values, made["first8"].values)


def test_a_plain_head_has_no_first_dimensions(world, tmp_path):
    plain = {k: v for k, v in HOW.items() if k != "layers"}
    space = train_space("nested", world, tmp_path / "plain", nested=False, **plain)
    assert space.layers() == ()
    with pytest.raises(ConfigError, match=r'"nested"'):
        TextEmbedder(str(tmp_path / "plain"), layer="first8")
    with pytest.raises(ConfigError, match=r'"nested"'):
        ImageEmbedder("world", layer="first8")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"prefixes": [33]}, "1 to 32"),
        ({"prefixes": [8], "nested": False, "layers": []}, "plain"),
        ({"nested": 1}, "nested=1"),
        ({"layers": "block1"}, "layers='block1'"),
        ({"layers": ["block7"]}, "block1"),
        ({"base": "word"}, "world"),
        ({"base": "gabor"}, "no texts"),
    ],
)
def test_bad_settings_are_refused(settings, match, world, tmp_path):
    with pytest.raises((ConfigError, DataError), match=match):
        train_space("nested", world, tmp_path / "s", **{**HOW, **settings})


def test_a_space_can_be_the_base_and_what_it_saw_stays_known(world, tmp_path, monkeypatch):
    first, second = world.sel(world.ids[:40]), world.sel(world.ids[40:70])
    monkeypatch.chdir(tmp_path)
    train_space("bow", first, "words", dims=24, **QUIET)
    space = train_space("nested", second, tmp_path / "n", base="./words", dims=16, prefixes=[4], epochs=2, **QUIET)
    assert space.layers() == ("first4",)
    monkeypatch.chdir("/")
    seen = TextEmbedder(str(tmp_path / "n"), **QUIET).embed_captions(world)["trained_on"].values
    assert seen.tolist() == [True] * 70 + [False] * 10
    train_space("bow", second, tmp_path / "words", dims=24, **QUIET)
    with pytest.raises(DataError, match="was trained on another"):
        TextEmbedder(str(tmp_path / "n"))


def test_a_config_reads_first_dimensions(nested, world, tmp_path):
    import pandas as pd

    from neuroenc import data
    from neuroenc.study import Study
    from neuroenc.study.read import read_config

    test = Stimuli(world.ids[60:], captions=world.captions[60:])
    rows = [(i, c) for i, several in zip(test.ids, test.captions) for c in several]
    pd.DataFrame(rows, columns=["stimulus", "caption"]).to_csv(tmp_path / "captions.csv", index=False)
    Y = data.make_responses(np.random.default_rng(0).standard_normal((20, 3)), stimulus=test.ids, dim="stimulus")
    data.save(Y, tmp_path / "Y.nc")
    text = (
        f'[data]\nresponses = "Y.nc"\ncaptions = "captions.csv"\nzscore = "none"\n[features.words]\nkind = "text"\n'
        f'model = "{nested}"\nlayer = "block1-first16"\n[evaluation]\npermutations = 0\n'
    )
    (tmp_path / "my.toml").write_text(text)
    made = Study(read_config(tmp_path / "my.toml"), progress=False).until("embed").spaces["words"]
    assert made.shape == (20, 16)
    assert made.attrs["layer"] == "block1-first16"
