"""Folds: each as if projected alone, in one pass, and drawn as promised."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import bank_folds, project
from neuroenc.captions.projection._project import project_folds
from neuroenc.retrieval import as_bank


def test_disjoint_folds_share_out_every_image():
    masks = bank_folds(103, 5, seed=3)
    assert masks.sum(axis=0).tolist() == [1] * 103
    assert sorted(masks.sum(axis=1).tolist()) == [20, 20, 21, 21, 21]
    np.testing.assert_array_equal(masks, bank_folds(103, 5, seed=3))
    assert (masks != bank_folds(103, 5, seed=4)).any()
    limited = bank_folds(103, 5, size=10, seed=3)
    assert limited.sum(axis=1).tolist() == [10] * 5
    assert not (limited & ~masks).any()


def test_resampled_folds_overlap_as_chance_says():
    masks = bank_folds(20_000, 4, size=10_000, kind="resampled")
    assert masks.sum(axis=1).tolist() == [10_000] * 4
    both = (masks[0] & masks[1]).sum()
    # hypergeometric: mean 5000, standard deviation 35
    assert abs(both - 5000) < 5 * 36


@pytest.mark.parametrize(
    "options",
    [{}, {"decouple": False}, {"renormalise": False}, {"device": "cpu"}, {"max_memory": 40_000}],
)
def test_each_fold_is_the_projection_of_its_images(rng, drawn, options):
    coef, bank = drawn(rng)
    ids = np.array([f"im{n}" for n in range(len(bank))])
    pools = [bank_folds(300, 3, size=80, kind="resampled"), bank_folds(400, 3, seed=1)]
    masks = np.concatenate(pools, axis=1)
    got = project_folds(coef, (bank, ids), masks, progress=False, **options)
    assert got["embedding"].dims == ("fold", "voxel", "feature")
    for n, mask in enumerate(masks):
        want = project(coef, (bank[mask], ids[mask]), progress=False, **{**options, "max_memory": None})
        mine = got.isel(fold=n)
        scale = float(want["norm"].max())
        np.testing.assert_allclose(mine["embedding"], want["embedding"], atol=1e-5 * scale, rtol=0)
        np.testing.assert_allclose(mine["effective_images"], want["effective_images"], rtol=2e-5)
        np.testing.assert_array_equal(mine["nearest_image"], want["nearest_image"])
        np.testing.assert_array_equal(mine["nearest_cosine"], want["nearest_cosine"])
        np.testing.assert_allclose(mine["bank_direction"], want["bank_direction"], atol=1e-6)
        assert int(mine["n_images"]) == mask.sum()


def test_the_bank_is_read_once_for_all_folds(rng, drawn):
    coef, bank = drawn(rng)

    class Counted:
        """An array that remembers which rows it was asked for."""

        shape, dtype = bank.shape, bank.dtype
        asked = np.zeros(len(bank), int)

        def __getitem__(self, rows):
            self.asked[rows] += 1
            return bank[rows]

    project_folds(coef, as_bank(Counted()), bank_folds(len(bank), 6, kind="resampled", size=400), progress=False)
    assert Counted.asked.tolist() == [1] * len(bank)


def test_folds_of_a_clear_preference_agree_and_of_noise_do_not(rng):
    """Planted: voxels that like one of six kinds of images; what they are shown in each fold is that kind."""
    kinds = np.linalg.qr(rng.standard_normal((24, 24)))[0][:6]
    bank = (kinds[rng.integers(0, 6, 3000)] + 0.15 * rng.standard_normal((3000, 24))) * 10
    out = project_folds(kinds.T, bank, 5, progress=False)
    unit = out["embedding"] / np.linalg.norm(out["embedding"], axis=-1, keepdims=True)
    hits = np.einsum("fvd,kd->fvk", unit.values, kinds).argmax(-1)
    np.testing.assert_array_equal(hits, np.tile(np.arange(6), (5, 1)))


@pytest.mark.slow
def test_memory_of_folds_is_bounded(rng, tmp_path, tracked):
    n, d, v = 100_000, 64, 200
    bank = np.lib.format.open_memmap(tmp_path / "bank.npy", "w+", np.float16, (n, d))
    bank[:] = rng.standard_normal((n, d))
    bank.flush()
    coef = rng.standard_normal((d, v))
    project_folds(coef, np.asarray(bank[:100]), 2, progress=False)
    with tracked() as peak:
        project_folds(coef, tmp_path / "bank.npy", 5, max_memory="10MB", progress=False)
    assert peak() < 13e6  # the bank has 12.8e6 and the masks 0.5e6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bank_folds(10, 11), ConfigError, "folds=11 of 10 images"),
        (lambda: bank_folds(10, 3, size=4), ConfigError, "legal sizes are 1 to 3"),
        (lambda: bank_folds(10, 3, kind="disjont"), ConfigError, "did you mean 'disjoint'"),
        (lambda: project_folds(np.eye(3), np.ones((4, 3)), np.ones((2, 5), bool)), DataError, r"bool \(folds, 4\)"),
        (lambda: project_folds(np.eye(3), np.ones((4, 3)), np.eye(4, dtype=bool) & False), DataError, "4 of 4 folds"),
        (lambda: project_folds(np.eye(3), iter([np.ones((4, 3))]), 2), DataError, "stream whose length"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_bad_image_is_named_by_its_place_in_the_bank(rng, drawn):
    coef, bank = drawn(rng)
    bank[123] = 0
    with pytest.raises(DataError, match="the first is row 123"):
        project_folds(coef, bank, 3, progress=False)
