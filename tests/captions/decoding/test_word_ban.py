"""Words that captions must not say: every spelling by tokens, no more than asked for."""

import itertools

import numpy as np
import pytest
import torch

from neuroenc._core.errors import ConfigError
from neuroenc.captions import CorpusConstraint, load_captioner, load_lexicon
from neuroenc.captions.decoding._constraints import WordBan
from neuroenc.captions.decoding._search import beam_search
from neuroenc.data.simulate import simulate_world
from neuroenc.embedding import ImageEmbedder
from steps import FunctionStep


class Pieces:
    """A vocabulary by hand; a space is written as byte-level vocabularies write it."""

    all_special_tokens = ("<end>",)

    def __init__(self, *pieces):
        self.pieces = [p.replace(" ", "Ġ") for p in pieces]

    def __len__(self):
        return len(self.pieces)

    def convert_ids_to_tokens(self, numbers):
        return [self.pieces[k] for k in numbers]


def test_every_spelling_is_found_and_nothing_else():
    pieces = [
        "<end>",
        " man",
        "man",
        " wo",
        "m",
        "an",
        " ",
        "s",
        " Men",
        " hot",
        " dog",
        "dog",
        "kind",
        " m",
        " the",
        "-",
    ]
    tokenizer = Pieces(*pieces)
    ban = WordBan(["man", "hot dog"], tokenizer, len(pieces))
    text = lambda y: "".join("" if k == 0 else pieces[k] for k in y)  # noqa: E731
    for y in itertools.product(range(len(pieces)), repeat=3):
        written = all(ban(torch.tensor([y[:t]], dtype=torch.long), torch.zeros(1))[0, y[t]] for t in range(3))
        # By definition: no beginning of the tokens says one of the words.
        assert written == (not any(ban.says(text(y[: t + 1])) for t in range(3))), text(y)
    assert ban.says("A MAN")
    assert ban.says("men, hot dogs")
    assert not ban.says("woman kind of hot, dog")


def test_searches_go_on_without_the_words():
    tokenizer = Pieces("<end>", " man", " dog", " m", "an")
    table = torch.tensor([0.2, 0.5, 0.05, 0.15, 0.1]).log()
    step = FunctionStep(lambda items, tokens: table.expand(len(items), -1), n=2)
    ban = WordBan(["man"], tokenizer, 5)
    found = beam_search(step, stop=0, beams=4, max_length=3, constraint=ban)
    texts = ["".join(tokenizer.pieces[k] for k in row if k > 0) for row in found.tokens.flatten(0, 1).tolist()]
    assert not any(ban.says(t.replace("Ġ", " ")) for t in texts)


def test_within_another_constraint():
    tokenizer = Pieces("<end>", " a", " man", " dog")
    corpus = CorpusConstraint.from_captions(
        ["a man", "a dog"], lambda t: {"a man": [1, 2], "a dog": [1, 3]}[t], stop=0, vocabulary=4, ids=["x", "y"]
    )
    ban = WordBan(["man"], tokenizer, 4, within=corpus)
    assert ban(torch.tensor([[1]]), torch.zeros(1)).tolist() == [[False, False, False, True]]
    assert ban.provenance([1, 3, 0])["ids"].tolist() == ["y"]
    assert WordBan(["man"], tokenizer, 4).provenance([1]).empty


def test_the_world_without_its_best_words():
    x = ImageEmbedder("world", progress=False).embed(simulate_world(24, seed=11)).values
    captioner = load_captioner("world", device="cpu")
    plain = [c[0].text for c in captioner.generate(x)]
    nouns = sorted({w for t in plain for w in t.split() if len(w) > 3})[:6]
    ban = WordBan(nouns, captioner.tokenizer, captioner.vocabulary)
    changed = [c[0].text for c in captioner.with_options(without=nouns).generate(x)]
    assert any(map(ban.says, plain))
    assert not any(map(ban.says, changed))
    kept = [k for k, t in enumerate(plain) if not ban.says(t)]
    assert [changed[k] for k in kept] == [plain[k] for k in kept]


@pytest.mark.slow
def test_photographs_without_people():
    x = np.random.default_rng(0).standard_normal((6, 384))
    captioner = load_captioner("photo", device="cpu", without=load_lexicon()["person"])
    found = [c.text for several in captioner.generate(x, top=3) for c in several]
    assert len(found) >= 12
    assert not any(map(captioner.constraint.says, found))


def test_bad_words():
    with pytest.raises(ConfigError, match="at least one"):
        WordBan([], Pieces("a"), 1)
    with pytest.raises(ConfigError, match=r"\['!'\]"):
        WordBan(["a", "!"], Pieces("a"), 1)
