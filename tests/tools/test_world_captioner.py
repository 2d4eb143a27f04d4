"""The world's caption model: its script in small, its tokenizer, its measures."""

import json

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError
from neuroenc.captions import PrefixDecoder
from neuroenc.captions.decoding._language_model import make_tokenizer
from neuroenc.data.simulate import MEMBERS, names_member, simulate_world
from neuroenc.data.simulate._lexicon import member
from train_world_captioner import main, train_world_captioner
from world_caption_metrics import evaluate_world_captions


@pytest.fixture(scope="module")
def world():
    return simulate_world(60, seed=4)


def test_true_captions_name_what_is_there(world):
    for column in range(4):
        mine = [c[column % len(c)] for c in world.captions]
        found = evaluate_world_captions(mine, world.table, world.captions)
        assert found["named_family"] == found["named_member"] == found["only_present"] == found["in_references"] == 1.0
        assert found["bleu4"] == pytest.approx(1.0)
        assert found["n"] == 60
    wrong = evaluate_world_captions(["a cup", *mine[1:]][::-1], world.table, world.captions)
    assert wrong["named_family"] < 0.7
    assert wrong["bleu4"] < 0.5
    assert wrong["named_member"] < 0.4


def test_phrases_name_their_own_member_only():
    for names in MEMBERS.values():
        for name in names:
            for phrase in member(name).phrases:
                text = f"There is a {phrase.format(c='red')} on the grass."
                assert names_member(text, name)
                assert not any(names_member(text, other) for other in ("man", "woman", "apple") if other != name)


def test_the_tokenizer_keeps_every_text(world):
    texts = [c for several in world.captions for c in several]
    tokenizer = make_tokenizer(texts)
    for text in [*texts[:40], "Ein Bär, 3 £ & more"]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert make_tokenizer(texts[::-1]).get_vocab() == tokenizer.get_vocab()
    # Words of the world are one or two tokens each.
    lengths = [len(tokenizer.encode(t)) / len(t.split()) for t in texts]
    assert np.mean(lengths) < 1.6


@pytest.mark.parametrize("sources", ["both", "text"])
def test_the_script_trains_writes_and_measures(tmp_path, sources, capsys):
    arguments = ["--scenes", "60", "--epochs", "2", "--held-out", "12", "--width", "32", "--layers", "1"]
    main(["--out", str(tmp_path / "model"), "--sources", sources, "--minutes", "0.5", *arguments])
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert printed == written
    assert written["ended_by"] == "steps"
    assert written["n"] == 12
    assert {"named_family", "named_member", "bleu4", "shuffled_named_family"} <= set(written)
    decoder = PrefixDecoder.load(tmp_path / "model", device="cpu", beams=2, max_length=10)
    assert decoder.centre
    assert decoder.mean is not None
    assert decoder.text_direction is not None
    found = decoder.generate(np.random.default_rng(0).standard_normal((2, decoder.embedding_dim)), top=1)
    assert all(len(f) == 1 for f in found)
    with pytest.raises(ConfigError, match="sources"):
        train_world_captioner(tmp_path, sources="words")
