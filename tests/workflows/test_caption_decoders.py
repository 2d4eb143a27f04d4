"""``[decoder]`` of ``neuroenc caption``: words left out, reranking, and what is refused."""

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError
from neuroenc.captions import WordBan, load_lexicon
from neuroenc.captions.text._words import word_pattern
from neuroenc.workflows import example_caption_config
from neuroenc.workflows._caption_decoders import make_decoder
from neuroenc.workflows._caption_inputs import Texts

CAPTIONS = ["two women on a bench", "a red bus", "a snowman", "a man with a hat"]


def texts():
    return Texts(CAPTIONS, np.eye(4, 128), ["a", "b", "c", "d"], "bank")


def embed(given):
    return np.ones((len(given), 128))


def test_the_bank_is_left_without_captions_that_name_people():
    config = example_caption_config("world", ['decoder.kind="retrieval"', 'decoder.without=["person"]'])
    kept = make_decoder(config, texts(), embed)
    assert list(kept.captions) == ["a red bus", "a snowman"]
    everything = texts()
    only = Texts(CAPTIONS[:1], everything.vectors[:1], ["a"], "bank")
    with pytest.raises(ConfigError, match="every caption of the bank names person"):
        make_decoder(config, only, embed)


def test_the_captioner_is_told():
    config = example_caption_config("world", ['decoder.without=["person"]', "decoder.rerank=1.5"])
    found = make_decoder(config, texts(), embed)
    assert isinstance(found.constraint, WordBan)
    assert found.rerank == 1.5
    assert found.constraint.says("three men")
    plain = make_decoder(example_caption_config("world"), texts(), embed)
    assert plain.constraint is None
    assert plain.rerank == 0


def test_what_is_refused():
    with pytest.raises(ConfigError, match=r"unknown concept.*'persn'.*did you mean 'person'"):
        example_caption_config("world", ['decoder.without=["persn"]'])
    with pytest.raises(ConfigError, match="at least 0"):
        example_caption_config("world", ["decoder.rerank=-1"])


def test_v4_names_no_people():
    assert example_caption_config("v4").decoder.without == ["person"]
    assert word_pattern(load_lexicon()["person"]).search("children at play")
