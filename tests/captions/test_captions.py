"""Decoding, evidence, word counts and the whole path, on planted concepts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import (
    CaptionResult,
    Decoder,
    LinearEncoder,
    RetrievalDecoder,
    caption_voxels,
    evidence,
    nouns,
    project,
    shuffled_control,
)


@pytest.fixture(scope="module")
def decoder(planted):
    return RetrievalDecoder(planted.captions, planted.texts, ids=[f"t{i}" for i in range(18)])


@pytest.fixture(scope="module")
def result(planted, decoder):
    return caption_voxels(planted, planted.bank, decoder, top=3, n_evidence=4, progress=False)


def test_interfaces(planted, decoder):
    assert isinstance(planted, LinearEncoder)
    assert isinstance(decoder, Decoder)


def test_planted_concepts_are_named_and_shuffled_weights_are_at_chance(planted, decoder, result):
    assert planted.named(result.captions) >= 0.95
    rates = [
        planted.named(
            caption_voxels(shuffled_control(planted.coef, seed), planted.bank, decoder, top=1, progress=False).captions
        )
        for seed in range(5)
    ]
    # chance 1/6; 300 voxels in all, so 4 standard errors are 0.09
    assert abs(np.mean(rates) - 1 / 6) < 0.09


def test_table_has_the_contracted_columns(planted, result):
    assert isinstance(result, CaptionResult)
    frame = result.captions
    assert list(frame.columns) == [
        "voxel",
        "rank",
        "caption",
        "score",
        "caption_id",
        "predicted",
        "i",
        "roi",
        "evidence",
    ]
    assert len(frame) == 60 * 3
    assert frame["voxel"].tolist() == np.repeat(planted.coef["voxel"].values, 3).tolist()
    assert frame["rank"].tolist() == [1, 2, 3] * 60
    assert (frame.groupby("voxel")["score"].diff().dropna() <= 0).all()
    assert frame["score"].between(-1, 1).all()
    assert frame["predicted"].notna().all()
    first = frame.iloc[0]
    assert first["evidence"] == ";".join(result.evidence.query("voxel == 100")["stimulus"])
    assert first["caption"] == planted.captions[int(first["caption_id"][1:])]
    assert result.n_gated == 0


def test_score_is_the_centred_cosine(planted, decoder, result):
    unit = planted.texts / np.linalg.norm(planted.texts, axis=1, keepdims=True)
    text = unit - unit.mean(0)
    p = result.projection
    d = p["embedding"].values / np.linalg.norm(p["embedding"].values, axis=1, keepdims=True)
    d = d - p["bank_direction"].values
    cosine = (d @ text.T) / np.outer(np.linalg.norm(d, axis=1), np.linalg.norm(text, axis=1))
    best = result.captions[result.captions["rank"] == 1]
    np.testing.assert_allclose(best["score"], cosine.max(1), atol=1e-5)
    assert best["caption"].tolist() == [planted.captions[i] for i in cosine.argmax(1)]


def test_predicted_is_the_encoders_response(planted):
    plain = RetrievalDecoder(planted.captions, planted.texts, centre=False)
    p = project(planted, planted.bank, progress=False)
    frame = plain.decode(p, 2, coef=planted.coef, intercept=planted.intercept)
    text = planted.texts[frame["caption_id"].astype(int)]
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    at = np.repeat(np.arange(60), 2)
    want = (planted.coef.values.T[at] * text).sum(1) + planted.intercept.values[at]
    np.testing.assert_allclose(frame["predicted"], want, rtol=1e-4, atol=1e-5)
    assert plain.decode(p, 1)["predicted"].isna().all()


def test_predicted_across_the_gap_is_near_the_response_to_images(planted, result):
    """Text moved onto the images' cone is predicted like images of its concept."""
    best = result.captions[result.captions["rank"] == 1].set_index("voxel")["predicted"]
    x = planted.images / np.linalg.norm(planted.images, axis=1, keepdims=True)
    response = x @ planted.coef.values + planted.intercept.values
    own = np.array([response[planted.kind == p, v].mean() for v, p in enumerate(planted.prefers)])
    rest = np.array([response[planted.kind != p, v].mean() for v, p in enumerate(planted.prefers)])
    assert (best.values > (own + rest) / 2).mean() > 0.9


def test_centring_removes_a_caption_that_is_near_every_image(planted):
    """A hub text that points along the images' mean wins everywhere unless both means are subtracted."""
    captions = [*planted.captions, "hub"]
    texts = np.vstack([planted.texts, planted.gap_text + planted.gap_image])
    p = project(planted, planted.bank, progress=False)
    plain = RetrievalDecoder(captions, texts, centre=False).decode(p, 1)
    centred = RetrievalDecoder(captions, texts).decode(p, 1)
    assert (plain["caption"] == "hub").mean() > 0.5
    assert (centred["caption"] == "hub").mean() == 0
    assert planted.named(centred) >= 0.9


def test_equal_texts_become_one():
    decoder = RetrievalDecoder(
        ["A dog.", "a cat", " a  dog"], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], ids=["x", "y", "z"], centre=False
    )
    assert (decoder.captions, decoder.ids) == (["A dog.", "a cat"], ["x", "y"])
    np.testing.assert_allclose(decoder.directions[0], np.array([1, 0, 1]) / np.sqrt(2))
    p = project(np.array([[1.0], [0.0], [1.0]]), np.eye(3) + 0.1, progress=False)
    frame = decoder.decode(p, 5)
    assert frame["caption"].tolist() == ["A dog.", "a cat"]  # fewer captions than asked for


def test_ties_go_to_the_earlier_caption():
    texts = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    p = project(np.array([[1.0], [0.0]]), np.array([[1.0, 0.2], [0.2, 1.0]]), progress=False)
    for centre in (True, False):
        frame = RetrievalDecoder(["w", "x", "y", "z"], texts, centre=centre).decode(p, 3)
        assert frame["caption"].tolist() == ["x", "y", "z"]


def test_evidence_is_exact(planted):
    frame = evidence(planted, planted.bank, k=5)
    raw = planted.bank.values.astype(float)
    x = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    response = x @ planted.coef.values.astype(float) + planted.intercept.values
    order = np.argsort(-response, axis=0)[:5].T
    assert frame["stimulus"].tolist() == planted.bank["stimulus"].values[order.ravel()].tolist()
    np.testing.assert_allclose(frame["predicted"], np.take_along_axis(response.T, order, 1).ravel(), rtol=1e-5)
    unscaled = evidence(planted.coef, planted.bank, k=1, features_normalised=False)
    assert (
        unscaled["stimulus"].tolist() == planted.bank["stimulus"].values[(raw @ planted.coef.values).argmax(0)].tolist()
    )
    shards = [planted.bank[:700], planted.bank[700:]]
    pd.testing.assert_frame_equal(evidence(planted, iter(shards), k=5, max_memory="1MB"), frame)
    with pytest.raises(DataError, match="k=1501 of a bank of 1500"):
        evidence(planted, planted.bank, k=1501)


def test_gated_voxels_get_nothing_and_are_reported(planted, decoder, result):
    mask = xr.DataArray(planted.prefers == 0, dims="voxel", coords={"voxel": planted.coef["voxel"].values})
    out = caption_voxels(planted, planted.bank, decoder, top=3, n_evidence=4, mask=mask, progress=False)
    assert out.n_gated == int((~mask).sum()) > 0
    assert out.gated == tuple(planted.coef["voxel"].values[~mask.values].tolist())
    expected = result.captions[result.captions["voxel"].isin(mask["voxel"].values[mask.values])]
    pd.testing.assert_frame_equal(out.captions, expected.reset_index(drop=True), rtol=1e-4)
    assert out.projection.sizes["voxel"] == mask.values.sum()
    none = caption_voxels(planted, planted.bank, decoder, mask=np.zeros(60, bool), progress=False)
    assert (len(none.captions), len(none.evidence), none.n_gated) == (0, 0, 60)
    assert list(none.captions.columns) == list(result.captions.columns)


@pytest.mark.filterwarnings("ignore:.*zero or NaN")
def test_dead_voxels_get_no_caption(planted, decoder):
    coef = planted.coef.copy()
    coef[:, 1] = np.nan
    out = caption_voxels(coef, planted.bank, decoder, top=1, n_evidence=0, progress=False)
    assert 101 not in out.captions["voxel"].values
    assert len(out.captions) == 59
    assert (out.captions["evidence"] == "").all()
    assert len(out.evidence) == 0


def test_shuffled_control_keeps_everything_but_the_assignment(planted):
    mixed = shuffled_control(planted, seed=3)
    np.testing.assert_array_equal(np.sort(mixed, axis=0), np.sort(planted.coef, axis=0))
    assert not np.array_equal(mixed, planted.coef)
    xr.testing.assert_equal(mixed, shuffled_control(planted.coef, seed=3))
    assert not mixed.equals(shuffled_control(planted.coef, seed=4))
    np.testing.assert_array_equal(mixed["roi"], planted.coef["roi"])
    ranks = np.argsort(mixed.values, axis=0) - np.argsort(planted.coef.values, axis=0)
    assert len({tuple(r) for r in ranks.T}) > 50  # every voxel has a permutation of its own


def test_word_counts(planted, result):
    words = nouns(result.captions, max_rank=1)
    assert words[words["roi"] == "FFA"].iloc[0]["word"] == "face"
    assert not {"a", "of", "photo", "one", "small"} & set(words["word"])
    families = nouns(result.captions, {"face": "person", "hand": "person"})
    assert set(families["word"]) <= {"face", "faces", "hand", "hands"}
    assert set(families["family"]) == {"person"}
    frame = pd.DataFrame(
        {"voxel": [0, 1, 2], "rank": 1, "caption": ["dogs and a dog", "two boxes", ""], "roi": ["A", "", "A"]}
    )
    assert nouns(frame, lambda w: {"dog": "animal", "box": "thing"}.get(w)).values.tolist() == [
        ["A", "dog", 1, 0.5, "animal"],
        ["A", "dogs", 1, 0.5, "animal"],
        ["none", "boxes", 1, 1.0, "thing"],
    ]
    assert nouns(frame.drop(columns="roi"), stop=["and"])["roi"].unique().tolist() == ["all"]


def test_errors(planted, decoder):
    p = project(planted, planted.bank, progress=False)
    with pytest.raises(DataError, match="2 captions and embeddings of shape"):
        RetrievalDecoder(["a", "b"], np.eye(3))
    with pytest.raises(DataError, match=r"1 of 2 caption embeddings are NaN.*'b'"):
        RetrievalDecoder(["a", "b"], [[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ConfigError, match="two different captions"):
        RetrievalDecoder(["a", "A."], np.eye(2))
    with pytest.raises(DataError, match="one embedding"):
        RetrievalDecoder(["a", "b"], np.ones((2, 2)))
    with pytest.raises(DataError, match="1 ids for 2"):
        RetrievalDecoder(["a", "b"], np.eye(2), ids=["x"])
    with pytest.raises(DataError, match="width 48, captions 2"):
        RetrievalDecoder(["a", "b"], np.eye(2)).decode(p)
    with pytest.raises(ConfigError, match="mean image direction"):
        decoder.decode(p.drop_vars("bank_direction"))
    with pytest.raises(ConfigError, match="top=0"):
        decoder.decode(p, 0)
    with pytest.raises(DataError, match="different voxels"):
        decoder.decode(p, coef=planted.coef[:, ::-1])
    with pytest.raises(DataError, match=r"images are looked up.*stream is read once"):
        caption_voxels(planted, iter([planted.bank]), decoder, progress=False)
    with pytest.raises(DataError, match="mask has dtype float64"):
        caption_voxels(planted, planted.bank, decoder, mask=np.ones(60), progress=False)
    with pytest.raises(ConfigError, match="has its own"):
        caption_voxels(planted, planted.bank, decoder, intercept=np.zeros(60), progress=False)
    with pytest.raises(DataError, match="another order"):
        caption_voxels(planted.coef, planted.bank, decoder, intercept=planted.intercept[::-1], progress=False)


def test_what_is_no_decoder_is_refused():
    with pytest.raises(ConfigError, match=r"decoder is a NoneType.*RetrievalDecoder"):
        caption_voxels(np.eye(2), np.eye(2), None)
