"""numpy and torch, one pass and parts on Dask: the same numbers."""

from __future__ import annotations

import pickle

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import bank_folds, project
from neuroenc.captions.projection._project import project_folds
from neuroenc.captions.projection._state import ProjectionState
from neuroenc.retrieval import Chunk, as_bank

NUMBERS = ("embedding", "norm", "cosine_before_after", "effective_images", "bank_direction")


def check_same(got, want, tolerance):
    for name in NUMBERS:
        scale = float(np.abs(want[name]).max())
        np.testing.assert_allclose(got[name], want[name], atol=tolerance * scale, rtol=0, err_msg=name)
    np.testing.assert_array_equal(got["nearest_image"], want["nearest_image"])
    np.testing.assert_array_equal(got["nearest_cosine"], want["nearest_cosine"])
    assert got.attrs["bank_hash"] == want.attrs["bank_hash"]
    assert got["embedding"].dtype == want["embedding"].dtype


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int16"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-11)])
@pytest.mark.parametrize("options", [{}, {"decouple": False}, {"temperature": 0.2}])
def test_torch_is_numpy(rng, drawn, kind, dtype, tolerance, options):
    coef, bank = drawn(rng)
    bank = (bank * 20 if kind == "int16" else bank).astype(kind)
    bank[350:] = bank[:350]  # of equal images the first is the nearest, on every backend
    want = project(coef, bank, dtype=dtype, progress=False, **options)
    got = project(coef, bank, dtype=dtype, device="cpu", max_memory=100_000, progress=False, **options)
    check_same(got, want, tolerance)


def test_torch_is_the_closed_form(rng, drawn, closed):
    coef, bank = drawn(rng)
    got = project(coef, bank, dtype="float64", device="cpu", progress=False)
    want = closed(coef, bank)
    np.testing.assert_allclose(got["embedding"], want["embedding"], rtol=1e-9, atol=1e-9)


def test_torch_refuses_what_numpy_refuses(rng, drawn):
    coef, bank = drawn(rng)
    bank[41] = np.nan
    with pytest.raises(DataError, match="NaN or infinite values; the first is row 41"):
        project(coef, bank, device="cpu", progress=False)
    with pytest.raises(ConfigError, match="torch device"):
        project(coef, bank, device="gpu", progress=False)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_states_survive_the_way_to_another_process(rng, drawn, device):
    coef, bank = drawn(rng)
    unit = (coef / np.linalg.norm(coef, axis=0)).T
    whole = ProjectionState(unit, dtype="float64", device=device)
    whole.update(Chunk(0, bank, None))
    half = ProjectionState(unit, dtype="float64", device=device)
    half.update(Chunk(0, bank[:300], None))
    arrived = pickle.loads(pickle.dumps(half))  # noqa: S301  what Dask does; no file is read so
    rest = half.fresh()
    rest.update(Chunk(300, bank[300:], None))
    for state in (arrived.merge(rest), arrived):
        if state is arrived:
            state.update(Chunk(300, bank[300:], None))  # and goes on there
        for name, value in whole.finish().items():
            np.testing.assert_allclose(state.finish()[name], value, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(half.vectors, pickle.loads(pickle.dumps(half)).vectors)  # noqa: S301


@pytest.mark.parametrize("options", [{}, {"decouple": False}, {"device": "cpu"}])
def test_dask_chunks_merge_to_one_pass(rng, drawn, options):
    coef, bank = drawn(rng)
    bank = bank.astype(np.float32)
    ids = [f"im{n}" for n in range(len(bank))]
    labelled = xr.DataArray(bank, dims=("stimulus", "feature"), coords={"stimulus": ids})
    want = project(coef, labelled, dtype="float64", progress=False, **options)
    for chunks in ((1, 99, 250, 350), (700,)):
        lazy = labelled.chunk(stimulus=chunks, feature=5)
        check_same(project(coef, lazy, dtype="float64", progress=False, **options), want, 1e-11)
    plain = da.from_array(bank, chunks=(128, -1))
    nameless = project(coef, plain, dtype="float64", progress=False, **options)
    np.testing.assert_allclose(nameless["embedding"], want["embedding"], rtol=1e-10)
    assert nameless["nearest_image"].values.tolist() == [x[2:] for x in want["nearest_image"].values]


def test_dask_reads_each_chunk_once(rng, drawn):
    coef, bank = drawn(rng)
    read = []

    def look(block, block_info=None):
        read.append(block_info[0]["chunk-location"][0])
        return block

    lazy = da.from_array(bank, chunks=(100, -1)).map_blocks(look, dtype=bank.dtype, meta=bank[:0])
    project(coef, lazy, max_memory="1MB", progress=False)
    assert sorted(read) == list(range(7))


def test_folds_on_dask(rng, drawn):
    coef, bank = drawn(rng)
    masks = bank_folds(len(bank), 3, size=300, kind="resampled")
    want = project_folds(coef, bank, masks, dtype="float64", progress=False)
    got = project_folds(coef, da.from_array(bank, chunks=(128, -1)), masks, dtype="float64", progress=False)
    np.testing.assert_allclose(got["embedding"], want["embedding"], rtol=1e-10)
    np.testing.assert_array_equal(got["nearest_image"], want["nearest_image"])
    np.testing.assert_array_equal(got["n_images"], want["n_images"])


def test_unknown_chunks_and_streams_are_refused_by_dask(rng, drawn):
    coef, bank = drawn(rng)
    lazy = da.from_array(bank, chunks=(128, -1))
    with pytest.raises(DataError, match="chunks of unknown length"):
        project(coef, lazy[lazy[:, 0] > 0], progress=False)
    with pytest.raises(ConfigError, match="client is str"):
        project(coef, bank, client="tcp://here", progress=False)


def test_a_client_of_processes_reads_files_and_merges(rng, drawn, tmp_path):
    distributed = pytest.importorskip("distributed")
    coef, bank = drawn(rng, n=9000)
    bank = bank.astype(np.float16)
    np.save(tmp_path / "a.npy", bank[:5000])
    shards = [tmp_path / "a.npy", bank[5000:]]
    want = project(coef, shards, dtype="float64", progress=False)
    with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        got = project(coef, as_bank(shards), dtype="float64", client=client, progress=False)
        check_same(got, want, 1e-11)
