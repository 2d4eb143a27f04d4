"""``[decoder]`` of ``neuroenc caption``: words left out, reranking, files of ClipCap, and what is refused."""

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import CaptionStudy, load_captioner, load_lexicon, make_language_model
from neuroenc.captions.decoding._constraints import WordBan
from neuroenc.captions.text._words import word_pattern
from neuroenc.study import caption, example_config, read_config
from neuroenc.study.preflight import preflight
from neuroenc.study.stages.bank import Texts, captioner_content, make_decoder

CAPTIONS = ["two women on a bench", "a red bus", "a snowman", "a man with a hat"]


def settings(name, overrides=None):
    return example_config(name, overrides, "caption")


def texts():
    return Texts(CAPTIONS, np.eye(4, 128), ["a", "b", "c", "d"], "bank")


def embed(given):
    return np.ones((len(given), 128))


def test_the_bank_is_left_without_captions_that_name_people():
    config = settings("world", ['captions.decoder.kind="retrieval"', 'captions.decoder.without=["person"]'])
    kept = make_decoder(config.captions, texts(), embed, 0)
    assert list(kept.captions) == ["a red bus", "a snowman"]
    everything = texts()
    only = Texts(CAPTIONS[:1], everything.vectors[:1], ["a"], "bank")
    with pytest.raises(ConfigError, match="every caption of the bank names person"):
        make_decoder(config.captions, only, embed, 0)


def test_keywords_are_phrases_of_the_bank_that_may_be_said():
    told = ["two women on a bench", "a red bus by a bench", "a woman in a bus", "the red bus"]
    bank = Texts(told, np.eye(4, 128), ["a", "b", "c", "d"], "bank")
    more = ["captions.decoder.keywords=3", 'captions.decoder.without=["person"]', 'captions.decoder.captioner=""']
    config = settings("world", ['captions.decoder.kind="keywords"', *more])
    assert not config.captions.decoder.writes
    found = make_decoder(config.captions, bank, embed, 0)
    assert found.phrases == ["a red bus"]
    assert found.keywords == 3
    with pytest.raises(ConfigError, match='kind = "keywords" needs captions'):
        make_decoder(config.captions, None, embed, 0)
    with pytest.raises(ConfigError, match="intervene = true needs"):
        settings("world", ['captions.decoder.kind="keywords"', "captions.grounding.intervene=true"])


def test_the_captioner_is_told():
    config = settings("world", ['captions.decoder.without=["person"]', "captions.decoder.rerank=1.5"])
    found = make_decoder(config.captions, texts(), embed, 0)
    assert isinstance(found.constraint, WordBan)
    assert found.rerank == 1.5
    assert found.constraint.says("three men")
    plain = make_decoder(settings("world").captions, texts(), embed, 0)
    assert plain.constraint is None
    assert plain.rerank == 0


def test_what_is_refused():
    with pytest.raises(ConfigError, match=r"unknown concept.*'persn'.*did you mean 'person'"):
        settings("world", ['captions.decoder.without=["persn"]'])
    with pytest.raises(ConfigError, match="at least 0"):
        settings("world", ["captions.decoder.rerank=-1"])


def test_v4_names_no_people():
    assert settings("v4").captions.decoder.without == ["person"]
    assert word_pattern(load_lexicon()["person"]).search("children at play")


def clipcap_file(folder, width):
    """A checkpoint with ClipCap's names and a small GPT-2, and the folder of its tokenizer."""
    torch = pytest.importorskip("torch")
    lm, tokenizer = make_language_model(CAPTIONS, width=64, layers=2, heads=1, positions=96)
    torch.manual_seed(0)
    mapping = torch.nn.Sequential(torch.nn.Linear(width, 160), torch.nn.Tanh(), torch.nn.Linear(160, 320))
    state = {f"clip_project.model.{k}": v for k, v in mapping.state_dict().items()}
    torch.save(state | {f"gpt.{k}": v for k, v in lm.state_dict().items()}, folder / "coco_weights.pt")
    tokenizer.save_pretrained(folder / "gpt2")


def own(folder, space, *overrides):
    (folder / "my.toml").write_text(
        f"""
        [data]
        name = "world"
        options = {{ n_subjects = 1, n_train = 40, n_test = 20, n_bank = 30, n_voxels = 12 }}
        [evaluation]
        scheme = "test"
        permutations = 50
        [captions]
        space = {{ {space} }}
        bank = {{ source = "unseen" }}
        gate = {{ kind = "roi", rois = ["FFA"] }}
        decoder = {{ captioner = "coco_weights.pt", tokenizer = "gpt2", beams = 2, groups = 1, top = 2 }}
        grounding = {{ images = 4 }}
        stability = {{ folds = 2, bootstraps = 0, halves = 0, null_voxels = 4, max_voxels = 6 }}
        analysis = {{ words = "none" }}
        """
    )
    return read_config(folder / "my.toml", list(overrides), "caption")


def test_a_file_in_clipcaps_layout_is_a_captioner(tmp_path):
    clipcap_file(tmp_path, 128)
    config = own(tmp_path, 'model = "world"')
    preflight(config, "caption")
    assert config.captions.decoder.tokenizer == str(tmp_path / "gpt2")
    found = make_decoder(config.captions, texts(), embed, 3)
    assert (found.embedding_dim, found.search.beams, found.search.seed, found.mapping.prefix_length) == (128, 2, 3, 5)
    assert found.encode("a red bus") == load_captioner(tmp_path / "coco_weights.pt", tokenizer=found.tokenizer).encode(
        "a red bus"
    )
    before = captioner_content(config.captions.decoder.captioner)
    clipcap_file(tmp_path, 64)
    assert captioner_content(config.captions.decoder.captioner) != before
    with pytest.raises(ConfigError, match=r"reads embeddings of 64; space .world. has 128"):
        make_decoder(config.captions, texts(), embed, 0)


def test_a_file_that_cannot_be_used_is_refused_before_anything_is_computed(tmp_path):
    clipcap_file(tmp_path, 128)
    for change, error, message in (
        ("tokenizer=./nothing", DataError, r"captions\.decoder\.captioner: no folder .*nothing of a tokenizer"),
        (f"tokenizer={tmp_path}", DataError, "no whole tokenizer"),
        ("captioner=./gpt2", ConfigError, "tokenizer belongs to a file in ClipCap's layout"),
        ("captioner=./my.toml", DataError, r"my\.toml cannot be read"),
        ("captioner=./weights.pt", ConfigError, r"weights\.pt.*a file in ClipCap's layout"),
    ):
        with pytest.raises(error, match=message):
            preflight(own(tmp_path, 'model = "world"', f"captions.decoder.{change}"), "caption")
    with pytest.raises(ConfigError, match="leave tokenizer out"):
        load_captioner("world", tokenizer="gpt2")


def test_weights_beside_the_config_are_found(tmp_path):
    (tmp_path / "ViT-B-32.pt").touch()
    for named, meant in (("ViT-B-32.pt", str(tmp_path / "ViT-B-32.pt")), ("openai", "openai")):
        config = own(tmp_path, f'model = "ViT-B-32-quickgelu", pretrained = "{named}"')
        assert config.captions.space.pretrained == meant


def test_captions_of_special_tokens_alone_are_none(tmp_path):
    clipcap_file(tmp_path, 4)
    decoder = load_captioner(tmp_path / "coco_weights.pt", tokenizer=tmp_path / "gpt2", beams=8, max_length=3)
    decoder.lm.lm_head.weight.data[decoder.tokenizer.pad_token_id] = 9 * decoder.lm.lm_head.weight.data.mean(0)
    whole = decoder.generate(np.eye(4), top=8)
    assert all(c.text for several in whole for c in several)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*RANDOM weights")
def test_vit_b_32_and_clipcaps_layout_give_a_report(tmp_path, monkeypatch):
    """Config to page, with random weights of the published sizes but for GPT-2's."""
    clipcap_file(tmp_path, 512)
    # Words that the page can be searched for: each is embedded, and 2,500 take minutes.
    monkeypatch.setattr("neuroenc.study.stages.analyse.search_vocabulary", lambda *_: ["face", "house", "dog"])
    config = own(tmp_path, 'model = "ViT-B-32"')
    summary = caption(config, tmp_path / "out", progress=False, say=print)
    study = CaptionStudy.load(tmp_path / "out" / "study")
    assert study.settings["decoder"]["captioner"] == "coco_weights.pt"
    assert study.settings["features"]["weights"] == "random(seed=0)"
    assert any("random weights" in note for note in study.caveats)
    assert "by the gate roi (rois FFA)" in study.methods()
    assert study.captions["caption"].str.len().min() > 0
    assert len(study.phrases)
    assert np.isfinite(summary["agreement:folds"])
    assert (tmp_path / "out" / "report" / "index.html").stat().st_size > 10_000
