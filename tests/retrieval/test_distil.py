"""Distilled rankers: heads against plain numpy, an index of their vectors, batches, labels and folders."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.retrieval import CrossRanker, DenseIndex, DistilledRanker, distill_ranker, hybrid_search

torch = pytest.importorskip("torch")

SMALL = {"dims": 8, "hidden": 16, "epochs": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((10, 12))
    queries = [concepts[rng.integers(0, 10, k)] for k in rng.integers(1, 4, 40)]
    patches = [concepts[rng.integers(0, 10, k)] for k in rng.integers(2, 6, 50)]
    return queries, patches


@pytest.fixture(scope="module")
def student(sets):
    return distill_ranker(CrossRanker(device="cpu"), *sets, **SMALL)


def test_heads_are_of_the_vectors(student, sets):
    queries, patches = sets
    u, v = student.vectors(queries, side="query"), student.vectors(patches)
    assert u.shape == (40, 8)
    assert v.dtype == np.float32
    state = {k: x.numpy() for k, x in student.model_.state_dict().items()}
    expected = (u @ v.T + state["offset"]) * student.scale_ + student.mean_
    assert student.score(queries, patches, head="dot") == pytest.approx(expected, abs=1e-4)
    found = student.score(queries, patches)
    pair = [np.concatenate([u[3], x, u[3] * x, np.abs(u[3] - x)]) for x in v]
    with torch.no_grad():
        added = student.model_.head(torch.tensor(np.stack(pair)))[:, 0].numpy()
    assert found[3] == pytest.approx(expected[3] + added * student.scale_, abs=1e-4)


def test_scores_do_not_depend_on_batches_or_padding(student, sets):
    queries, patches = sets
    whole = student.score(queries, patches)
    for size in (1, 7, 60):
        assert student.score(queries, patches, batch_size=size) == pytest.approx(whole, abs=1e-5)
    pairs = np.array([[3, 4], [39, 0]])
    for head in ("pair", "dot"):
        found = student.score(queries, patches, head=head, pairs=pairs, batch_size=1)
        assert found == pytest.approx(student.score(queries, patches, head=head)[tuple(pairs.T)], abs=1e-5)
    assert student.vectors(patches, batch_size=3) == pytest.approx(student.vectors(patches), abs=1e-6)
    assert student.vectors(patches[2:3])[0] == pytest.approx(student.vectors(patches)[2], abs=1e-6)


def test_vectors_go_into_an_index_and_the_head_behind_it(student, sets):
    queries, patches = sets
    tokens = np.full((50, 5, 12), np.nan)
    for n, x in enumerate(patches):
        tokens[n, : len(x)] = x
    labelled = xr.DataArray(
        tokens, dims=("stimulus", "token", "feature"), coords={"stimulus": [f"s{n}" for n in range(50)]}
    )
    vectors = student.vectors(labelled)
    assert vectors.dims == ("stimulus", "feature")
    index, asked = DenseIndex(vectors, normalise=False), student.vectors(queries, side="query")
    first = index.names(index.search(asked, 5)[1])
    best = np.argsort(-student.score(queries, patches, head="dot"), axis=1)[:, 0]
    assert (first[:, 0] == labelled["stimulus"].values[best]).all()
    found = hybrid_search([index], [asked], 2, rerank=student.scorer(queries, labelled), rerank_depth=5)
    again = student.rerank(queries, labelled, first, k=2)
    assert (found.ids == again.ids).all()
    assert (found.before == again.before).all()


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_students_learn_and_are_kept(loss, sets, tmp_path):
    queries, patches = sets
    teacher = CrossRanker(device="cpu")
    said = teacher.score(queries, patches)
    student = distill_ranker(teacher, queries, patches, **{**SMALL, "epochs": 30, "hidden": 32, "loss": loss})
    for head in ("dot", "pair"):
        learned = student.score(queries, patches, head=head)
        assert np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(said, learned)]) > 0.6
    found = DistilledRanker.load(student.save(tmp_path / "student"))
    assert (found.score(queries, patches) == student.score(queries, patches)).all()
    assert found.get_params() == student.get_params()
    with pytest.raises(DataError, match="holds no distilled ranker"):
        DistilledRanker.load(tmp_path)


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_pairs_without_a_score_are_left_out(loss, sets):
    queries, patches = sets
    scores = CrossRanker(device="cpu").score(queries, patches).astype(float)
    scores[5], scores[:, 7], scores[3, 2] = np.nan, np.nan, np.nan
    how = {**SMALL, "loss": loss, "list_size": 50}
    student = DistilledRanker(**how).fit(queries, patches, scores)
    assert np.isfinite(student.score(queries, patches)).all()
    # What stands in a candidate that is never scored does not matter.
    other = [*patches[:7], 9 * patches[7][:1], *patches[8:]]
    again = DistilledRanker(**how).fit(queries, other, scores)
    assert again.score(queries, patches) == pytest.approx(student.score(queries, patches), abs=1e-3)


def test_what_is_refused(student, sets):
    queries, patches = sets
    scores = np.random.default_rng(0).standard_normal((40, 50))
    with pytest.raises(ConfigError, match="was not fitted"):
        DistilledRanker().vectors(patches)
    with pytest.raises(ConfigError, match="unknown loss 'lk'; did you mean 'kl'"):
        DistilledRanker(loss="lk").fit(queries, patches, scores)
    with pytest.raises(ConfigError, match="unknown side"):
        student.vectors(patches, side="text")
    with pytest.raises(ConfigError, match="unknown head"):
        student.score(queries, patches, head="cosine")
    with pytest.raises(DataError, match=r"expected \(query, candidate\) = \(40, 50\)"):
        DistilledRanker().fit(queries, patches, scores.T)
    with pytest.raises(DataError, match="nothing can be learned"):
        DistilledRanker().fit(queries, patches, np.ones((40, 50)))
    with pytest.raises(DataError, match="was fitted on 12 of a candidate"):
        student.vectors([x[:, :6] for x in patches])
    labelled = xr.DataArray(scores, dims=("query", "candidate"), coords={"candidate": [f"s{n}" for n in range(50)]})
    with pytest.raises(DataError, match="other candidate ids"):
        DistilledRanker().fit(queries, patches, labelled)
