"""Captions on a grid: cells where they belong, empty ones zero, errors that say what to do."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._util.errors import DataError
from neuroenc.data import Stimuli
from neuroenc.data.simulate import simulate_world
from neuroenc.embedding import caption_grid, world_dense_captions


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


def thing(member, x, y, size, colour="red"):
    return {"member": member, "family": "food", "colour": colour, "x": x, "y": y, "size": size}


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
        ([("s", 2, 0, "a")], "outside a grid of 2 x 2"),
        ([("s", 0, -1, "a")], "count from 0"),
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
    found = world_dense_captions(scene(thing("banana", -0.25, 0.25, 0.5, "yellow")), (4, 4))
    assert sorted(zip(found["row"], found["column"])) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found["caption"].str.contains("banana").all()


def test_the_smaller_object_stands_in_front():
    found = world_dense_captions(scene(thing("banana", 0, 0, 1.0), thing("apple", 0.375, -0.375, 0.25)), (4, 4))
    cells = {(r, c): t for r, c, t in zip(found["row"], found["column"], found["caption"])}
    assert len(cells) == 16
    assert "apple" in cells[3, 3]
    assert sum("apple" in t for t in cells.values()) == 1


def test_dense_captions_agree_with_the_latents_of_the_world():
    world = simulate_world(60, seed=3)
    found = world_dense_captions(world, (8, 8))
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
        world_dense_captions(bare)
