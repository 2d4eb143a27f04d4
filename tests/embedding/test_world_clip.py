"""The world's own CLIP: what is shipped, how good it is, and that its script makes it."""

from __future__ import annotations

import json
import re

import numpy as np
from safetensors.numpy import load_file

from neuroenc.data import simulate_world
from neuroenc.data.simulate import FAMILIES, MEMBERS, vocabulary
from neuroenc.embedding import ImageEmbedder, TextEmbedder
from neuroenc.embedding._openclip import WORLD_CLIP
from train_world_clip import main
from world_clip_metrics import brief_captions, evaluate_world_clip

OPTIONS = {"cache": False, "progress": False, "device": "cpu"}


def test_what_is_shipped():
    names = {p.name for p in WORLD_CLIP.iterdir()}
    assert {"open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "metrics.json"} <= names
    assert sum(p.stat().st_size for p in WORLD_CLIP.iterdir()) < 6_000_000
    metrics = json.loads((WORLD_CLIP / "metrics.json").read_text())
    assert metrics["zero_shot_family"] >= 0.95
    assert metrics["seconds_total"] < 20 * 60
    assert metrics["threads"] == 2


def test_held_out_scenes():
    """Scenes that no training saw: families without any training on them, captions, members."""
    found = evaluate_world_clip("world", held_out=600)
    assert found["zero_shot_family"] >= 0.95
    assert found["zero_shot_family_single"] >= 0.95
    assert found["retrieval_r5"] >= 0.5
    assert found["member_probe_r"] >= 0.7
    assert found["norm_cv"] >= 0.02


def test_random_weights_do_not_pass(make_folder):
    """The measures can fail: an untrained tower is near chance."""
    folder = make_folder("vit", 21)
    found = evaluate_world_clip(f"local-dir:{folder}", held_out=200)
    assert found["zero_shot_family"] < 0.5
    assert found["retrieval_r5"] < 0.1


def test_members_are_told_apart_by_their_names():
    """Images of single objects lie nearest to their own member's name."""
    world = simulate_world(400, seed=77)
    alone = world.sel(world.ids[(world.table["n_objects"] == 1) & (world.table["family"] != "none")])
    members = [m for f in FAMILIES for m in MEMBERS[f]]
    image = ImageEmbedder("world", normalise=True, **OPTIONS).embed(alone).values
    text = TextEmbedder("world", normalise=True, **OPTIONS).embed([f"a photo of a {m}" for m in members]).values
    truth = alone.table[[f"member_{m}" for m in members]].to_numpy().argmax(1)
    assert len(alone) > 80
    assert ((image @ text.T).argmax(1) == truth).mean() > 0.85


def test_tokenizer_knows_every_word_of_the_world():
    tokens = json.loads((WORLD_CLIP / "tokenizer.json").read_text())["model"]["vocab"]
    assert set(vocabulary()) | set(FAMILIES) <= set(tokens)
    assert tokens["<end>"] == max(tokens.values())
    world = simulate_world(50, seed=5)
    words = {w for c in world.captions for t in c for w in re.findall(r"\w+", t.lower())}
    assert words <= set(tokens)


def test_brief_captions_name_the_main_object():
    world = simulate_world(60, seed=3)
    for texts, family in zip(brief_captions(world.table), world.table["family"], strict=True):
        assert len(texts) == 8
        assert (family in texts[-1]) == (family != "none")


def test_the_script_writes_a_folder_that_loads_and_repeats_itself(tmp_path, capsys):
    common = ["--scenes", "64", "--steps", "2", "--held-out", "40", "--seed", "3", "--threads", "1"]
    for name in ("a", "b"):
        main(["--out", str(tmp_path / name), *common])
    printed = json.loads("{" + capsys.readouterr().out.split("{", 1)[1].split("\n}")[0] + "}")
    assert printed["steps"] == 2
    assert printed["ended_by"] == "steps"
    one, two = (load_file(tmp_path / n / "open_clip_model.safetensors") for n in ("a", "b"))
    for name in one:
        # Sums in another order may turn the sign of a vanishing gradient: two small steps and float16 rounding apart.
        np.testing.assert_allclose(one[name], two[name], rtol=2e-3, atol=2e-4, err_msg=name)
    found = ImageEmbedder(f"local-dir:{tmp_path / 'a'}", **OPTIONS).embed(simulate_world(3))
    assert np.isfinite(found).all()


def test_time_limit_ends_the_training(tmp_path):
    main(["--out", str(tmp_path), "--scenes", "64", "--steps", "100000", "--minutes", "0.02", "--held-out", "20"])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["ended_by"] == "minutes"
    assert metrics["steps"] < 100_000
