"""Images from captions, by a stand-in that renders what captions say, judged by a second encoder."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import diffusion_pipeline, evaluate_images, retrieve_images, synthesise
from neuroenc.data import Stimuli, average_repeats, simulate_cortex, simulate_world, zscore
from neuroenc.data.simulate import FAMILIES, MEMBERS
from neuroenc.data.simulate._lexicon import member
from neuroenc.data.simulate._scene import Scene, SceneObject, render
from neuroenc.encoders import RidgeEncoder

ROIS = {"FFA": "face", "PPA": "place", "VWFA": "word", "food": "food"}


class Renderer:
    """A text-to-image pipeline of the simulated world, with the call of diffusers."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompt, num_inference_steps=20, guidance_scale=1.0, generator=None):
        self.calls.append((list(prompt), num_inference_steps, guidance_scale))
        images = []
        for text, source in zip(prompt, generator):
            rng = np.random.default_rng(source.initial_seed())
            named = [(f, m) for f in FAMILIES for m in MEMBERS[f] if m in text.lower().replace(".", "").split()]
            things = [
                SceneObject(
                    f,
                    m,
                    str(rng.choice(member(m).colours)),
                    float(rng.uniform(-0.1, 0.1)),
                    0.0,
                    0.95 if f == "place" else 0.7,
                    1.0,
                )
                for f, m in named[:1]
            ]
            scene = Scene(tuple(things), "sky", "blue", 0.9, 0.0, 0.0, 4.0, 0.0, "neutral")
            images.append(Image.fromarray(render(scene, 64)))
        return type("Output", (), {"images": images})()


def hand_made(stimuli: Stimuli) -> np.ndarray:
    """Edges by orientation, colours by place, and a colour histogram: no network has seen these."""
    x = np.stack([np.asarray(stimuli.image(n), dtype=np.float32) / 255 for n in range(len(stimuli))])
    gy, gx = np.gradient(x.mean(-1), axis=(1, 2))
    size, angle = np.hypot(gx, gy), ((np.arctan2(gy, gx) % np.pi) / np.pi * 8).astype(int) % 8
    edges = [(size * (angle == k)).reshape(len(x), 8, 8, 8, 8).sum((2, 4)).reshape(len(x), -1) for k in range(8)]
    colour = x.reshape(len(x), 8, 8, 8, 8, 3).mean((2, 4)).reshape(len(x), -1)
    code = ((x * 3.999).astype(int) * [16, 4, 1]).sum(-1).reshape(len(x), -1)
    histogram = np.stack([np.bincount(c, minlength=64) for c in code]) / code.shape[1]
    return np.hstack([np.sqrt(np.hstack(edges)) / 10, 0.1 * colour, np.sqrt(histogram)])


@pytest.fixture(scope="module")
def second():
    """An encoder of hand-made features, fitted on half of the scenes; the others are the natural images."""
    world = simulate_world(800, seed=21)
    subject = simulate_cortex(world, n_voxels=dict.fromkeys(ROIS, 20), n_sessions=2, ncsnr=(0.6, 1.5), own=0.0, seed=3)[
        0
    ]
    seen, held = world.sel(world.ids[:500]), world.sel(world.ids[500:])
    y = average_repeats(zscore(subject.responses, by="session"))
    encoder = RidgeEncoder(n_jobs=1).fit(hand_made(seen), y.sel(stimulus=seen.ids).values)
    return encoder, held, y["roi"].values, y.sel(stimulus=held.ids)


@pytest.fixture(scope="module")
def made():
    """Images from captions of each region's family."""
    pytest.importorskip("torch")
    captions = {roi: [f"A picture of a {m}." for m in MEMBERS[f]] for roi, f in ROIS.items()}
    return {roi: synthesise(c, Renderer(), n=4, progress=False) for roi, c in captions.items()}


def test_synthesised_images_drive_their_region_and_no_other(second, made):
    encoder, held, rois, _ = second
    summary, each = evaluate_images(made, encoder, hand_made, rois, natural=held, n_top=20)
    own = summary[summary["source"] == "synthesised"].pivot(index="roi", columns="made_for", values="mean")
    for roi in ROIS:
        assert own.loc[roi].idxmax() == roi
    intended = summary[(summary["source"] == "synthesised") & (summary["roi"] == summary["made_for"])]
    # Above random natural images, with intervals that say so, in at least three of four regions.
    natural = summary[summary["source"] == "natural"].set_index("roi")
    assert (intended["low"].to_numpy() > natural.loc[intended["roi"], "high"].to_numpy()).sum() >= 3
    assert (intended["percentile"] > 0.5).all()
    top = summary[summary["source"] == "natural top"]
    assert (top["selection"] == "same encoder").all()
    assert (top["mean"].to_numpy() > natural.loc[top["roi"], "high"].to_numpy()).all()
    assert set(each.columns) == {"roi", "made_for", "source", "stimulus", "predicted"}
    rows = each[(each["roi"] == "FFA") & (each["source"] == "natural")]
    expected = encoder.predict(hand_made(held))[:, rois == "FFA"].mean(1)
    np.testing.assert_allclose(rows["predicted"], expected, rtol=1e-6)


def test_images_of_other_captions_do_not(second, made):
    """Negative control: images dealt to other regions are no better than natural ones."""
    encoder, held, rois, _ = second
    names = list(ROIS)
    wrong = {names[i]: made[names[(i + 1) % 4]] for i in range(4)}
    summary, _ = evaluate_images(wrong, encoder, hand_made, rois, natural=held, n_top=20)
    row = summary[(summary["source"] == "synthesised") & (summary["roi"] == summary["made_for"])]
    right, _ = evaluate_images(made, encoder, hand_made, rois, natural=held, n_top=20)
    best = right[(right["source"] == "synthesised") & (right["roi"] == right["made_for"])]
    assert row["percentile"].mean() < 0.5 < best["percentile"].mean()


def test_top_images_by_measured_responses(second, made):
    encoder, held, rois, measured = second
    top = {}
    for roi in ROIS:
        mean = measured.values[:, rois == roi].mean(1)
        top[roi] = held.ids[np.argsort(-mean)[:30]].tolist()
    summary, _ = evaluate_images(made, encoder, hand_made, rois, natural=held, top=top)
    shown = summary[summary["source"] == "natural top"]
    assert (shown["selection"] == "given").all()
    own = shown[shown["roi"] == shown["made_for"]]
    assert (own["n_images"] == 30).all()
    assert (own["above_natural"] > 0.3).all()


def test_retrieval_stands_in_for_synthesis(second):
    pytest.importorskip("torch")
    from neuroenc.embedding import ImageEmbedder, TextEmbedder

    encoder, held, rois, _ = second
    images = ImageEmbedder("world", cache=False, progress=False).embed(held)
    text = TextEmbedder("world", cache=False, progress=False)
    captions = {roi: [f"a {m}" for m in MEMBERS[f]] for roi, f in ROIS.items()}
    everything = [c for group in captions.values() for c in group]
    found = retrieve_images(everything, images, text, k=4).set_index("caption")
    sets = {roi: held.sel(list(dict.fromkeys(found.loc[group, "stimulus"]))) for roi, group in captions.items()}
    for roi, family in ROIS.items():
        assert (sets[roi].table[family] > 0).mean() > 0.8
    summary, _ = evaluate_images(sets, encoder, hand_made, rois, natural=held, n_top=20, source="retrieved")
    own = summary[summary["source"] == "retrieved"].pivot(index="roi", columns="made_for", values="mean")
    assert all(own.loc[roi].idxmax() == roi for roi in ROIS)


def test_retrieval_is_the_centred_cosine_however_the_bank_is_cut():
    rng = np.random.default_rng(0)
    bank, texts = rng.standard_normal((50, 6)) + 2, rng.standard_normal((7, 6)) - 1
    names = [f"t{i}" for i in range(7)]

    def embed_text(asked):
        return texts[[int(x[1:]) for x in asked]]

    found = retrieve_images(names, bank, embed_text, k=3)
    m, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, texts))
    m, t = m - m.mean(0), t - t.mean(0)
    cosine = (t @ m.T) / np.outer(np.linalg.norm(t, axis=1), np.linalg.norm(m, axis=1))
    order = np.argsort(-cosine, axis=1)[:, :3]
    assert found["stimulus"].tolist() == [str(x) for x in order.ravel()]
    np.testing.assert_allclose(found["score"], np.take_along_axis(cosine, order, 1).ravel(), atol=1e-6)
    pd.testing.assert_frame_equal(found, retrieve_images(names, [bank[:20], bank[20:]], embed_text, k=3))
    frame = pd.DataFrame({"voxel": [1, 2], "caption": ["t3", "t3"]})
    assert len(retrieve_images(frame, bank, embed_text, centre=False)) == 1
    with pytest.raises(DataError, match="one caption"):
        retrieve_images(["t1"], bank, embed_text)


def test_images_do_not_depend_on_batches_and_keep_their_labels():
    pytest.importorskip("torch")
    table = pd.DataFrame(
        {"voxel": [5, 6, 7], "rank": 1, "roi": ["FFA", "PPA", "FFA"], "caption": ["a man", "a house", "a man"]}
    )
    renderer = Renderer()
    one = synthesise(table, renderer, n=3, batch_size=1, seed=4, progress=False)
    many = synthesise(table, Renderer(), n=3, batch_size=5, seed=4, progress=False)
    other = synthesise(table, Renderer(), n=3, batch_size=5, seed=5, progress=False)
    np.testing.assert_array_equal(one.images, many.images)
    assert not np.array_equal(one.images, other.images)
    assert len(np.unique(one.images.reshape(6, -1), axis=0)) == 6
    assert one.table["roi"].tolist() == ["FFA"] * 3 + ["PPA"] * 3
    assert one.captions[0] == ("a man",)
    # The settings of the paper reach the pipeline.
    assert all(call[1:] == (50, 7.5) for call in renderer.calls)


def test_what_pipelines_may_return():
    def floats(prompt):
        return [np.full((4, 4, 3), 0.5, np.float32) for _ in prompt]

    assert (synthesise(["a"], floats, progress=False).images == 128).all()
    for bad, match in (
        (lambda prompt: [np.zeros((4, 4), np.uint8)], "shape"),
        (lambda prompt: [np.full((4, 4, 3), 2.0)], "legal: uint8, floats"),
        (lambda prompt: [], "0 images for 1 prompts"),
    ):
        with pytest.raises(DataError, match=match):
            synthesise(["a"], bad, progress=False)
    with pytest.raises(ConfigError, match="retrieve_images"):
        synthesise(["a"], None)
    with pytest.raises(ConfigError, match="at least 1"):
        synthesise(["a"], floats, n=0)
    with pytest.raises(DataError, match="'caption'"):
        synthesise(pd.DataFrame({"text": ["a"]}), floats)


def test_no_generator_is_fetched_silently(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModuleNotFoundError, match="retrieve_images"):
        diffusion_pipeline()
    asked = {}

    class Pipeline:
        @staticmethod
        def from_pretrained(model, **options):
            asked.update(options, model=model)
            raise OSError("not cached")

    fake = type(sys)("diffusers")
    fake.DiffusionPipeline = Pipeline
    monkeypatch.setitem(sys.modules, "diffusers", fake)
    with pytest.raises(ConfigError, match="allow_download=True"):
        diffusion_pipeline()
    assert asked == {"model": "stabilityai/stable-diffusion-2-1-base", "local_files_only": True}


def test_bad_evaluations_are_named(second, made):
    encoder, held, rois, _ = second
    with pytest.raises(DataError, match="region 'V9'"):
        evaluate_images({"V9": made["FFA"]}, encoder, hand_made, rois, natural=held, n_top=5)
    with pytest.raises(DataError, match="n_top=1000"):
        evaluate_images(made, encoder, hand_made, rois, natural=held, n_top=1000)
    with pytest.raises(DataError, match="has a mask of shape"):
        evaluate_images(made, encoder, hand_made, {"FFA": np.ones(3, bool)}, natural=held, n_top=5)
