"""``[decoder]`` of ``neuroenc caption``: words left out, reranking, and what is refused."""

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError
from neuroenc.captions import WordBan, load_lexicon
from neuroenc.captions.text._words import word_pattern
from neuroenc.study import example_config
from neuroenc.study.stages.bank import Texts, make_decoder

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
