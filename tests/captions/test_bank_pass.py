"""One reading of a bank against a reading for each that asks."""

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import RetrievalDecoder, bank_folds, caption_voxels, evidence, project
from neuroenc.captions._bank_pass import BankPass
from neuroenc.captions.checks._grounding_bank import read_images
from neuroenc.captions.projection._project import project_folds
from neuroenc.retrieval import EmbeddingBank, as_bank

RNG = np.random.default_rng(0)
N, D = 900, 24
ROWS = (RNG.standard_normal((N, D)) + 0.5).astype(np.float16)
NAMES = [f"photo {k}" for k in range(N)]
WEIGHTS = [RNG.standard_normal((D, v)) for v in (40, 9)]


class Counted(EmbeddingBank):
    """A bank that counts what is read of it."""

    def __init__(self, source, ids=None):
        super().__init__(source, ids)
        self.rows = self.bytes = 0

    def chunks(self, rows, width=None):
        for chunk in super().chunks(rows, width):
            self.rows, self.bytes = self.rows + len(chunk.rows), self.bytes + chunk.rows.nbytes
            yield chunk

    def take(self, positions, rows=16384):
        for chunk in super().take(positions, rows):
            self.rows, self.bytes = self.rows + len(chunk.rows), self.bytes + chunk.rows.nbytes
            yield chunk


@pytest.fixture
def bank():
    return Counted([(ROWS[:500], NAMES[:500]), (ROWS[500:], NAMES[500:])])


def all_of_it(bank, **options):
    reading = BankPass(bank, **options)
    masks = bank_folds(N, 3, seed=1)
    intercept = np.linspace(-1, 1, 40)
    asked = {
        "full": reading.project(WEIGHTS[0], intercept=intercept),
        "other": reading.project(WEIGHTS[1], renormalise=False),
        "warm": reading.project(WEIGHTS[1], temperature=0.5, decouple=False),
        **{f"fold {k}": reading.project(WEIGHTS[1], mask) for k, mask in enumerate(masks)},
    }
    best = reading.evidence(WEIGHTS[0], intercept=intercept, k=5, keep_rows=True)
    images = reading.images(50, seed=3)
    reading.read()
    return {name: found() for name, found in asked.items()}, best(), images(), reading


def apart(bank):
    quiet = {"progress": False}
    masks = bank_folds(N, 3, seed=1)
    intercept = np.linspace(-1, 1, 40)
    projections = {
        "full": project(WEIGHTS[0], bank, intercept=intercept, **quiet),
        "other": project(WEIGHTS[1], bank, renormalise=False, **quiet),
        "warm": project(WEIGHTS[1], bank, temperature=0.5, decouple=False, **quiet),
        **{f"fold {k}": project_folds(WEIGHTS[1], bank, m[None], **quiet).isel(fold=0) for k, m in enumerate(masks)},
    }
    return projections, evidence(WEIGHTS[0], bank, intercept=intercept, k=5), read_images(bank, [], 50, 3, None)


@pytest.mark.parametrize("memory", [None, "200kB"])
def test_results_are_those_of_a_reading_each(bank, memory):
    found, best, images, reading = all_of_it(bank, max_memory=memory)
    wanted, table, seen = apart(as_bank(bank))
    assert (reading.n_passes == 1) == (memory is None)
    for name, one in wanted.items():
        for variable in found[name].data_vars:
            if found[name][variable].dtype.kind == "f":
                np.testing.assert_allclose(found[name][variable], one[variable], rtol=1e-4, atol=2e-5, err_msg=name)
            else:
                np.testing.assert_array_equal(found[name][variable], one[variable])
    assert found["full"].attrs["bank_hash"] == wanted["full"].attrs["bank_hash"]
    assert found["full"].attrs["n_images"] == N
    assert found["fold 0"].attrs["n_images"] == N // 3
    assert best.table.equals(table)
    np.testing.assert_allclose(images.mean, seen.mean, rtol=1e-12)
    assert images.norm == pytest.approx(seen.norm, rel=1e-12)
    assert images.random == seen.random
    assert set(images.vectors) == set(seen.random)


def test_embeddings_of_the_best_images_are_kept(bank):
    best = all_of_it(bank)[1]
    assert set(best.rows) == set(best.table["stimulus"])
    for name, row in best.rows.items():
        np.testing.assert_array_equal(row, ROWS[NAMES.index(name)])


def test_the_bank_is_read_once_for_everything_and_a_reading_each_costs_more(bank):
    all_of_it(bank)
    assert (bank.rows, bank.bytes) == (N, ROWS.nbytes)
    bank.rows = 0
    apart(bank)
    assert bank.rows == 8 * N


def test_captions_and_evidence_share_a_reading(bank):
    decoder = RetrievalDecoder(["a", "b", "c"], np.eye(D)[:3], centre=False)
    caption_voxels(WEIGHTS[0], bank, decoder, n_evidence=4, progress=False)
    assert bank.rows == N


def test_voxels_without_weights_and_none_at_all(bank):
    coef = WEIGHTS[1] * np.r_[np.ones(8), 0.0]
    reading = BankPass(bank)
    with pytest.warns(UserWarning, match="1 of 9 voxels"):
        some = reading.project(coef)
    nobody, best = reading.project(coef[:, :0]), reading.evidence(coef[:, :0], k=3)
    reading.read()
    assert np.isnan(some()["embedding"][8]).all()
    assert nobody().sizes["voxel"] == 0
    assert not len(best().table)
    np.testing.assert_allclose(nobody()["bank_direction"], some()["bank_direction"])


def test_lazy_banks_are_computed_by_dask():
    da = pytest.importorskip("dask.array")
    lazy = xr.DataArray(da.from_array(ROWS, chunks=(300, D)), dims=("stimulus", "feature"))
    reading = BankPass(lazy)
    one, best = reading.project(WEIGHTS[0]), reading.evidence(WEIGHTS[0], k=2)
    reading.read()
    np.testing.assert_allclose(one()["embedding"], project(WEIGHTS[0], ROWS, progress=False)["embedding"], atol=2e-5)
    assert best().table.equals(evidence(WEIGHTS[0], ROWS, k=2))


def test_what_is_asked_too_early_too_late_or_of_a_stream(bank):
    reading = BankPass(bank)
    found = reading.project(WEIGHTS[0])
    with pytest.raises(ConfigError, match="not read yet"):
        found()
    reading.read()
    with pytest.raises(ConfigError, match="read already"):
        reading.evidence(WEIGHTS[0])
    short = BankPass(iter([ROWS]), max_memory="20kB")
    short.project(WEIGHTS[0])
    with pytest.raises(DataError, match="read a stream once"):
        short.read()
    wide = BankPass(ROWS)
    wide.project(np.ones((D + 1, 2)))
    with pytest.raises(DataError, match="width"):
        wide.read()
    many = BankPass(ROWS)
    many.evidence(WEIGHTS[0], k=N + 1)
    with pytest.raises(DataError, match="at most 900"):
        many.read()
    with pytest.raises(DataError, match="stream has no length"):
        BankPass(iter([ROWS])).images(5)
