"""Captions on a grid: cells where they belong, empty ones zero, errors that say what to do."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import Stimuli
from neuroenc.data.simulate import describe_cells, simulate_world
from neuroenc.embedding import TextEmbedder, caption_grid


class Letters:
    """Vectors that count letters: a real, if simple, text space."""

    model = "letters"

    def embed(self, texts):
        return xr.DataArray(np.array([[t.count(c) for c in "abcdefgh"] for t in texts], dtype=np.float32))


def table(*rows):
    return pd.DataFrame(rows, columns=["stimulus", "row", "column", "caption"])


def scene(*objects):
    ids = np.array(["s"])
    frame = pd.DataFrame({"objects": [json.dumps(objects)]}, index=ids)
    return Stimuli(ids, np.zeros((1, 32, 32, 3), np.uint8), None, frame)


def thing(member, x, y, size, colour="red", family="food"):
    return {"member": member, "family": family, "colour": colour, "x": x, "y": y, "size": size}


def test_cells_are_where_the_table_says_and_the_rest_is_zero():
    maps = caption_grid(
        table(("t", 0, 2, "aab"), ("s", 1, 0, "c"), ("s", 1, 0, "ccc")), ["s", "t", "u"], Letters(), grid=(2, 3)
    )
    assert maps.shape == (3, 8, 2, 3)
    expected = np.zeros((3, 8, 2, 3))
    expected[1, 0, 0, 2], expected[1, 1, 0, 2] = 2, 1
    expected[0, 2, 1, 0] = 2  # the mean of one and three
    np.testing.assert_array_equal(maps.values, expected)
    assert maps.attrs["empty"] == pytest.approx(16 / 18)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("s", 2, 0, "a")], "first: row 2; legal are the whole numbers 0 to 1"),
        ([("s", 0, -1, "a")], "count from 0"),
        ([("s", 0, 0.5, "a")], "column 0.5"),
        ([("s", None, 0, "a")], "outside the grid"),
        ([("s", 0, 0, "a"), ("s", 0, 1, float("nan"))], "1 of 2 captions are empty or not text"),
        ([("s", 0, 0, " ")], "their cells become zero"),
        ([("x", 0, 0, "a")], "not in ids"),
        ([], "empty"),
    ],
)
def test_tables_that_do_not_fit_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        caption_grid(table(*rows), ["s"], Letters(), grid=(2, 2))


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match="caption"):
        caption_grid(table(("s", 0, 0, "a")).drop(columns="caption"), ["s"], Letters())


def test_an_object_is_named_in_the_cells_that_it_covers():
    """Upper left quarter of the picture: rows 0 and 1, columns 0 and 1 of four; y points up in the latents."""
    found = describe_cells(scene(thing("banana", -0.25, 0.25, 0.5, "yellow")), (4, 4))
    assert sorted(zip(found["row"], found["column"])) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found["caption"].str.contains("banana").all()


def test_the_smaller_object_stands_in_front():
    found = describe_cells(scene(thing("banana", 0, 0, 1.0), thing("apple", 0.375, -0.375, 0.25)), (4, 4))
    cells = {(r, c): t for r, c, t in zip(found["row"], found["column"], found["caption"])}
    assert len(cells) == 16
    assert "apple" in cells[3, 3]
    assert sum("apple" in t for t in cells.values()) == 1


def test_a_place_stands_behind_everything():
    """Also behind an object larger than itself, as the pictures are drawn."""
    objects = thing("house", 0, 0, 0.6, "white", "place"), thing("banana", 0, 0, 0.8, "yellow")
    found = describe_cells(scene(*objects), (4, 4))
    assert found["caption"].str.contains("banana").all()
    small = describe_cells(scene(objects[0], thing("banana", 0.125, 0.125, 0.25, "yellow")), (4, 4))
    cells = dict(zip(zip(small["row"], small["column"]), small["caption"]))
    assert "banana" in cells[1, 2]
    assert "house" in cells[2, 1]


def test_cells_lie_where_the_picture_shows_them():
    """A lone object changes the pixels of the cells that bear its name more than those of the others."""
    world = simulate_world(700, seed=5)
    flat = world.table["background"].eq("plain") & (world.table["grating"] == 0)
    chosen = world.sel(world.table.index[flat & (world.table["n_objects"] == 1) & (world.table["place"] == 0)])
    assert len(chosen) >= 5
    found = describe_cells(chosen, (8, 8))
    for name, image in zip(chosen.ids, chosen.images):
        named = np.zeros((8, 8), bool)
        rows = found[found["stimulus"] == name]
        named[rows["row"], rows["column"]] = True
        background = np.median(image.astype(float)[:2], axis=(0, 1))
        change = np.abs(image - background).mean(2).reshape(8, 8, 8, 8).mean((1, 3))
        assert change[named].mean() > 3 * change[~named].mean()


def test_grid_of_the_world_through_its_own_text_tower():
    world = simulate_world(12, seed=2)
    found = describe_cells(world)
    embedder = TextEmbedder("world", cache=False, progress=False, device="cpu")
    maps = caption_grid(found, world.ids, embedder)
    assert maps.dims == ("stimulus", "channel", "y", "x")
    assert maps.shape == (12, 128, 8, 8)
    assert maps.stimulus.values.tolist() == world.ids.tolist()
    filled = np.zeros((12, 8, 8), bool)
    filled[found["stimulus"].map({s: n for n, s in enumerate(world.ids)}), found["row"], found["column"]] = True
    np.testing.assert_array_equal((maps.values != 0).any(1), filled)
    one = found.iloc[7]
    vector = embedder.embed([one["caption"]]).values[0]
    at = maps.sel(stimulus=one["stimulus"])[:, one["row"], one["column"]]
    np.testing.assert_allclose(at, vector, rtol=1e-4, atol=1e-5)
    assert maps.attrs["backbone"] == "world"
    assert len(maps.attrs["content_hash"]) == 64
    means = embedder.embed_captions(world)
    np.testing.assert_allclose(means[3], embedder.embed(list(world.captions[3])).values.mean(0), rtol=1e-4, atol=1e-5)


def test_grids_without_cells():
    with pytest.raises(ConfigError, match="positive number of rows"):
        caption_grid(table(("s", 0, 0, "a")), ["s"], Letters(), grid=(0, 8))
    with pytest.raises(ConfigError, match="positive number of rows"):
        describe_cells(simulate_world(1), (8, 0))


def test_dense_captions_agree_with_the_latents_of_the_world():
    world = simulate_world(60, seed=3)
    found = describe_cells(world, (8, 8))
    assert set(found["stimulus"]) <= set(world.ids)
    for family in ("food", "face"):
        rows = world.table[world.table[family] > 0]
        named = found[found["stimulus"].isin(rows.index)]
        # The cell in an object's centre is described, whatever stands in front of it.
        for name, row in rows.iterrows():
            r, c = int((0.5 - row[f"{family}_y"]) * 8), int((row[f"{family}_x"] + 0.5) * 8)
            assert ((named["stimulus"] == name) & (named["row"] == r) & (named["column"] == c)).any()


def test_photographs_cannot_be_described():
    bare = Stimuli(np.array(["s"]), np.zeros((1, 32, 32, 3), np.uint8), None, None)
    with pytest.raises(DataError, match="captions of your own"):
        describe_cells(bare)
