"""Checks of single values that many functions share."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc import captions, data, encoders, report, stats
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions.checks._scoring import caption_agreement
from neuroenc.encoders.linear._banded import simplex_candidates
from neuroenc.retrieval import CaptionCorpus, DenseIndex, LexicalIndex, NGramIndex, NGramScorer, as_bank
from neuroenc.retrieval._ngrams import ngram_weight

RNG = np.random.default_rng(0)
Y, YHAT = RNG.standard_normal((2, 20, 3))
IDS = np.repeat([f"s{k}" for k in range(10)], 2)
RESPONSES = data.make_responses(Y, stimulus=IDS, session=np.repeat([1, 2], 10))
TEXTS, VECTORS = ["a dog", "a cat", "a house"], np.eye(3)

SEEDED = {
    "bootstrap": lambda seed: stats.Resampler(20, seed=seed).score(Y, YHAT),
    "permutation_test": lambda seed: stats.permutation_test(Y, YHAT, n_permutations=20, seed=seed),
    "split_half_reliability": lambda seed: stats.split_half_reliability(Y, IDS, unit="r", seed=seed),
    "split_by_stimulus": lambda seed: data.split_by_stimulus(RESPONSES, 0.2, seed=seed),
    "folds": lambda seed: data.folds(RESPONSES, n_splits=2, seed=seed),
    "bank_folds": lambda seed: captions.bank_folds(10, 2, seed=seed),
    "shuffled_control": lambda seed: captions.shuffled_control(np.eye(3), seed=seed),
    "resampled_rows": lambda seed: list(encoders.resampled_rows([1, 2, 3], seed=seed)),
    "simplex_candidates": lambda seed: simplex_candidates(2, 5, seed),
    "ReadoutEncoder": lambda seed: encoders.ReadoutEncoder("linear", seed=seed).fit(Y, YHAT),
}


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None])
@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_is_a_whole_number_of_at_least_0(name, seed):
    with pytest.raises(ConfigError, match="seed="):
        SEEDED[name](seed)


TEXTUAL = {
    "RetrievalDecoder": lambda texts: captions.RetrievalDecoder(texts, VECTORS),
    "caption_diversity": lambda texts: captions.caption_diversity(texts, VECTORS),
    "find_phrases": captions.find_phrases,
    "CaptionCorpus": lambda texts: CaptionCorpus(texts, list("abc")),
    "LexicalIndex": LexicalIndex,
}


@pytest.mark.parametrize("texts", ["abc", ["a dog", None, "a cat"], ["a dog", float("nan"), "a cat"], [1, 2, 3]])
@pytest.mark.parametrize("name", TEXTUAL)
def test_what_is_no_text_is_no_caption(name, texts):
    with pytest.raises(DataError, match=r"one string|are not text"):
        TEXTUAL[name](texts)


@pytest.mark.parametrize("missing", [float("nan"), None])
def test_missing_ids_among_texts_are_refused(missing):
    with pytest.raises(DataError, match="must be text"):
        data.make_responses(Y[:2], stimulus=["a", missing])


@pytest.mark.parametrize(
    ("dim", "label"),
    [
        ("presentation", {"repeat": [-1, 0]}),
        ("presentation", {"ncsnr": [-1.0, 1.0, 1.0]}),
        ("presentation", {"vertex": [-1, 2, 3], "hemi": "L"}),
        ("stimulus", {"n_repeats": [0, 1]}),
    ],
)
def test_counts_places_and_ratios_have_a_least_value(dim, label):
    with pytest.raises(DataError, match="legal are numbers from"):
        data.make_responses(Y[:2], stimulus=["a", "b"], dim=dim, **label)


UNLABELLED = {
    "zscore": data.zscore,
    "average_repeats": data.average_repeats,
    "split_by_stimulus": data.split_by_stimulus,
    "folds": data.folds,
    "match": lambda values: data.match(values, RESPONSES),
}


@pytest.mark.parametrize("values", [Y, None])
@pytest.mark.parametrize("name", UNLABELLED)
def test_arrays_without_labels_are_refused(name, values):
    with pytest.raises(DataError, match="labels are needed"):
        UNLABELLED[name](values)


REFUSED = {
    "a share of all": lambda: data.split_by_stimulus(RESPONSES, 1.0),
    "a share of nan": lambda: data.split_by_stimulus(RESPONSES, float("nan")),
    "no folds": lambda: data.folds(RESPONSES, n_splits=0),
    "folds in text": lambda: data.folds(RESPONSES, n_splits="5"),
    "ddof below 0": lambda: data.zscore(RESPONSES, ddof=-1),
    "responses too large to square": lambda: data.zscore(RESPONSES.astype("f8") * 1e300),
    "complex maps": lambda: data.unmask(np.ones(1) * 1j),
    "voxels of one id": lambda: captions.project(
        xr.DataArray(np.eye(3), dims=("feature", "voxel"), coords={"voxel": [0, 0, 1]}), VECTORS, progress=False
    ),
    "a direction of another width": lambda: captions.RetrievalDecoder(TEXTS, VECTORS, image_direction=[1.0]),
    "a direction of NaN": lambda: captions.RetrievalDecoder(TEXTS, VECTORS, image_direction=[np.nan, 1.0, 1.0]),
    "regions of other voxels": lambda: captions.sentence_scores(VECTORS, RNG.standard_normal((20, 3)), Y, roi=["a"]),
    "no shuffles": lambda: caption_agreement(np.ones((3, 4, 5)), n_shuffles=0),
    "counts below 0": lambda: ngram_weight([-1.0], [-5], 100),
    "counts above the corpus": lambda: ngram_weight([-1.0], [500], 100),
    "tokens that are fractions": lambda: NGramIndex([[1.5, 2]]),
    "an index of nothing": lambda: NGramScorer(None),
    "queries in words": lambda: DenseIndex(VECTORS).search(["dog"], 1),
    "a ragged bank": lambda: as_bank([[1, 2], [3]]),
    "a penalty for other voxels": lambda: encoders.ridge_weights(Y, YHAT, [1.0, 2.0]),
    "no bands": lambda: simplex_candidates(0, 5, 0),
    "no resamples": lambda: list(encoders.resampled_rows([1, 2, 3], n_draws=0)),
    "percent for shares": lambda: stats.partition_variance({"a": [40.0], "b": [30.0], ("a", "b"): [50.0]}),
    "a curve without columns": lambda: report.plot_support_curves(pd.DataFrame({"x": [1]})),
}


@pytest.mark.parametrize("name", REFUSED)
def test_illegal_values_are_refused_in_words(name):
    with pytest.raises((DataError, ConfigError)):
        REFUSED[name]()
