"""Unsupervised phrases: trees and distances, dependencies against a plain loop, files, words of any script, phrases."""

import itertools
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from brackets import bracket_f1, distances_from_tree, left_branching, random_tree, right_branching
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import write_sealed_json
from neuroenc.captions import GroundingChecker, SyntacticDistanceParser, find_phrases
from neuroenc.captions.text._parser_model import (
    StructuralAttention,
    StructuredLM,
    calibrated,
    dependency_distribution,
    hide,
    padded,
    span_distribution,
)
from neuroenc.captions.text._phrases import Phrase
from neuroenc.captions.text._trees import chunks, default_pattern, tree_from_distances, tree_spans, words_of
from planted_phrases import GRAMMARS, planted_captions

CAPTIONS = ["a red cat on the mat", "the dog in a house", "a cat in the red house", "the dog on a mat, a red dog"]
FUNCTION = ["a", "the", "on", "in"]


def numbered(tree, count=None):
    count = itertools.count() if count is None else count
    return tuple(numbered(t, count) for t in tree) if isinstance(tree, (tuple, list)) else next(count)


trees = st.recursive(st.none(), lambda inner: st.lists(inner, min_size=2, max_size=4), max_leaves=25).map(numbered)
distances = st.lists(st.integers(0, 5), max_size=15)


@given(trees)
def test_trees_come_back_from_their_distances(tree):
    assert tree_from_distances(distances_from_tree(tree)) == tree


@given(distances)
def test_distances_come_back_from_their_trees_in_their_order(values):
    tree = tree_from_distances(values)
    again = distances_from_tree(tree)
    assert tree_from_distances(again) == tree
    assert distances_from_tree(tree_from_distances(again)) == again

    def brute(first, last):
        """Split where the distance is largest, everywhere at once."""
        if first == last:
            return first
        inner = values[first:last]
        cuts = [first + k for k, d in enumerate(inner) if d == max(inner)]
        ends = zip([first, *(c + 1 for c in cuts)], [*cuts, last])
        return tuple(brute(a, b) for a, b in ends)

    assert tree == brute(0, len(values))


@given(st.permutations(range(12)))
def test_different_distances_give_pairs(values):
    tree = tree_from_distances(values)
    spans = tree_spans(tree)
    assert len(spans) == len(values) == len(set(spans))
    assert all(
        b <= c or d <= a or (a <= c and d <= b) or (c <= a and b <= d)
        for (a, b), (c, d) in itertools.combinations(spans, 2)
    )


def test_agreement_counts_inner_spans():
    gold = ((0, 1), ((2, 3), 4))
    assert bracket_f1([gold], [gold]) == 1.0
    # Of (1, 5), (2, 5), (3, 5) and (0, 2), (2, 5), (2, 4) one is common.
    assert bracket_f1([right_branching(5)], [gold]) == pytest.approx(1 / 3)
    assert bracket_f1([left_branching(5)], [gold]) == pytest.approx(1 / 3)
    # A flat tree claims nothing; texts of two words say nothing.
    assert bracket_f1([(0, 1, 2, 3, 4), (0, 1)], [gold, (0, 1)]) == 0.0
    assert math.isnan(bracket_f1([(0, 1)], [(0, 1)]))
    with pytest.raises(DataError, match="different texts"):
        bracket_f1([(0, 1)], [gold])
    with pytest.raises(DataError, match="as many"):
        bracket_f1([], [gold])
    with pytest.raises(DataError, match="NaN"):
        tree_from_distances([1.0, float("nan")])
    with pytest.raises(DataError, match="1 parts"):
        distances_from_tree((0, (1,)))


def loop(tau, delta, mu1, mu2):
    """p_D by its definition, one number at a time."""
    n = len(delta)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731

    def belongs(i, j):
        if not 0 <= j < n:
            return 0.0
        a, b = min(i, j), max(i, j)
        return 1.0 if a == b else sigmoid((delta[i] - max(tau[a:b])) / mu1)

    out = np.zeros((n, n))
    for i in range(n):
        for first in range(i + 1):
            for last in range(i, n):
                begins = belongs(i, first) - belongs(i, first - 1)
                ends = belongs(i, last) - belongs(i, last + 1)
                total = sum(math.exp(delta[k] / mu2) for k in range(first, last + 1))
                for j in range(first, last + 1):
                    out[i, j] += begins * ends * math.exp(delta[j] / mu2) / total
    np.fill_diagonal(out, 0.0)
    return out


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("mu", [(1.0, 1.0), (0.3, 2.0)])
def test_dependencies_are_those_of_a_plain_loop(n, mu):
    rng = np.random.default_rng(n)
    tau, delta = rng.normal(size=(3, n)), rng.normal(size=(3, n))
    # Two texts are shorter than the longest, in the way that the parser says so.
    lengths = [n, max(1, n - 1), max(1, n - 3)]
    tau_t, delta_t = torch.tensor(tau), torch.tensor(delta)
    for k, size in enumerate(lengths):
        tau_t[k, size - 1 :] = 1e9
        delta_t[k, size:] = -1e9
    found = dependency_distribution(tau_t, delta_t, mu)
    for k, size in enumerate(lengths):
        wanted = loop(tau[k, :size], delta[k, :size], *mu)
        np.testing.assert_allclose(found[k, :size, :size], wanted, atol=1e-12)
        assert found[k, :size, size:].abs().max() == 0 if size < n else True
    left, right = span_distribution(tau_t, delta_t, mu[0])
    for k, size in enumerate(lengths):
        np.testing.assert_allclose(left[k, :size].sum(1), 1, atol=1e-12)
        np.testing.assert_allclose(right[k, :size].sum(1), 1, atol=1e-12)


def test_sharp_heights_and_distances_give_the_tree_they_stand_for():
    # "the dog chases a cat": the verb is highest, nouns next; what is in front of a noun depends on it.
    tau, delta = torch.tensor([[1.0, 2.8, 2.5, 1.0, 1e9]]), torch.tensor([[1.5, 2.9, 9.0, 1.5, 2.7]])
    tau = calibrated(tau, delta, torch.ones(1, 5, dtype=torch.bool))
    found = dependency_distribution(tau, delta, (0.01, 0.01))[0]
    assert found.argmax(1).tolist()[:2] == [1, 2]
    assert found.argmax(1).tolist()[3:] == [4, 2]
    # The root has no parent.
    assert found[2].sum() < 1e-6
    assert found.sum(1)[[0, 1, 3, 4]].min() > 1 - 1e-3


def test_after_calibration_every_part_reaches_beyond_itself():
    rng = np.random.default_rng(3)
    n, lengths = 8, [8, 5, 1]
    known = torch.arange(n) < torch.tensor(lengths)[:, None]
    tau = torch.tensor(rng.normal(size=(3, n)) + 1.5).masked_fill(~torch.nn.functional.pad(known[:, 1:], (0, 1)), 1e9)
    delta = torch.tensor(rng.normal(size=(3, n))).masked_fill(~known, -1e9)
    found = calibrated(tau, delta, known)
    for k, size in enumerate(lengths):
        t = [math.inf, *found[k, : size - 1].tolist(), math.inf]
        needed = [
            min(t[a], t[b + 1]) - float(delta[k, a : b + 1].max())
            for a in range(size)
            for b in range(a, size)
            if b - a + 1 < size
        ]
        if needed:
            assert max(needed) == pytest.approx(0, abs=1e-9)
        moved = tau[k, : size - 1] - found[k, : size - 1]
        assert moved.numel() == 0 or (moved - moved[0]).abs().max() < 1e-9
        # Alone it is the same as beside longer texts.
        alone = calibrated(
            torch.cat([tau[k, : size - 1], torch.tensor([1e9])])[None], delta[k : k + 1, :size], known[k : k + 1, :size]
        )
        np.testing.assert_allclose(alone[0, : size - 1], found[k, : size - 1])


def test_attention_is_sigmoids_times_the_mask():
    torch.manual_seed(0)
    net = StructuralAttention(6, 2).double().eval()
    x, mask = torch.randn(2, 5, 6).double(), torch.rand(2, 2, 5, 5).double()
    q, k, v = (net.in_proj(x)[..., 6 * i : 6 * i + 6].view(2, 5, 2, 3) for i in range(3))
    wanted = torch.zeros(2, 5, 6).double()
    for b, h, i, j in itertools.product(range(2), range(2), range(5), range(5)):
        weight = mask[b, h, i, j] * torch.sigmoid(q[b, i, h] @ k[b, j, h] / 3**0.5)
        wanted[b, i, 3 * h : 3 * h + 3] += weight * v[b, j, h]
    torch.testing.assert_close(net.related(x, mask), net.out_proj(wanted))


@pytest.mark.parametrize("structured", [True, False])
def test_padding_changes_no_score(structured):
    torch.manual_seed(0)
    sizes = {"max_length": 9, "dim": 8, "layers": 2, "heads": 2, "parser_layers": 2, "parser_width": 3, "dropout": 0.1}
    net = StructuredLM(20, **sizes, structured=structured).double().eval()
    rows = [[3, 7, 2, 9, 12, 4], [5, 6], [8]]
    together = net(padded(rows))
    for k, row in enumerate(rows):
        torch.testing.assert_close(together[k, : len(row)], net(padded([row]))[0])
    if structured:
        masks = net.masks(net.syntax(padded(rows)))
        assert masks.shape == (2, 3, 2, 6, 6)
        # A head's factors are parents and dependents in shares that sum to 1.
        share = net.relations.softmax(2)[1, 0]
        parents = dependency_distribution(*net.syntax(padded(rows)))
        torch.testing.assert_close(masks[1, :, 0], share[0] * parents + share[1] * parents.mT)


def test_hidden_words_are_words_and_one_at_least():
    tokens = padded([[3, 4, 5, 6, 7, 8, 9, 10]] * 400 + [[3]])
    shown, hidden = hide(tokens, 0.25, torch.Generator().manual_seed(0))
    assert hidden.any(1).all()
    assert not hidden[-1, 1:].any()
    assert (shown[hidden] == 2).all()
    assert (shown[~hidden] == tokens[~hidden]).all()
    assert hidden[:-1].double().mean() == pytest.approx(0.25 + 0.75**8 / 8, abs=0.02)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A T-shirt isn't red, it's 2.", ["a", "t-shirt", "isn't", "red", "it's", "2"]),
        ("Ein großer Straßenhund läuft", ["ein", "grosser", "strassenhund", "läuft"]),
        ("हिन्दी में एक बिल्ली", ["हिन्दी", "में", "एक", "बिल्ली"]),
        ("", []),
    ],
)
def test_words_of_several_scripts(text, words):
    found = words_of(text, re.compile(default_pattern()))
    assert [w.text for w in found] == words
    assert [text[w.start : w.end].casefold() for w in found] == words


def test_phrases_are_parts_without_function_words_and_punctuation():
    def cut(text, tree, most=4):
        words = words_of(text, re.compile(default_pattern()))
        found = chunks(tree, words, text, ["a", "the", "of", "on", "and"], most)
        return [text[words[a].start : words[b - 1].end] for a, b in found]

    assert cut("a red cat on the mat", ((0, (1, 2)), (3, (4, 5)))) == ["red cat", "mat"]
    # A part that holds one inside is opened, and one with a comma.
    assert cut("cup of tea", (0, (1, 2))) == ["cup", "tea"]
    assert cut("red, cat", (0, 1)) == ["red", "cat"]
    assert cut("big red cat", (0, (1, 2)), most=2) == ["big", "red cat"]
    assert cut("big red cat", (0, 1, 2), most=1) == ["big", "red", "cat"]
    assert cut("the of", (0, 1)) == []
    assert cut("cat", 0) == ["cat"]


@pytest.fixture(scope="module")
def parser():
    built = SyntacticDistanceParser(dim=8, heads=2, min_count=1, function_words=FUNCTION, device="cpu")
    return built.fit(CAPTIONS, steps=5, batch_size=4, progress=False)


def test_a_caption_is_parsed_as_it_is_alone(parser):
    texts = [*CAPTIONS, "Dog", "", "...", "an unknown zebra", " ".join(["cat"] * 60)]
    together = parser.parse(texts)
    for text, found in zip(texts, together):
        (alone,) = parser.parse([text])
        np.testing.assert_allclose(alone.distances, found.distances, atol=1e-5)
        assert alone.tree == found.tree
        assert len(found.distances) == max(0, len(found.words) - 1)
        assert len(found.heights) == len(found.words)
        assert found.tree == (tree_from_distances(found.distances) if found.words else ())
    assert (together[5].tree, together[5].spans, str(together[5])) == ((), [], "()")
    assert re.sub("[()]", "", str(together[0])) == CAPTIONS[0]
    assert together[0].spans[0] == (0, len(CAPTIONS[0]))


def test_phrases_have_their_characters_and_heads(parser):
    texts = ["The RED cat, a dog on the mat", "", "the on", "a dog"]
    for text, found in zip(texts, parser.phrases(texts)):
        assert all(isinstance(p, Phrase) and text[p.start : p.end] == p.text for p in found)
        assert all(p.head in p.text.casefold().split() for p in found)
        words = {w for p in found for w in p.text.casefold().split()}
        assert words == {w.strip(",") for w in text.casefold().split()} - set(FUNCTION)
        assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert parser.phrases(["a dog"])[0] == [Phrase("dog", 2, 5, "dog")]


def test_training_is_repeatable_and_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    settings_ = {"dim": 8, "heads": 2, "min_count": 1, "device": "cpu"}
    one, two = (SyntacticDistanceParser(**settings_).fit(CAPTIONS, steps=4, progress=False) for _ in range(2))
    other = SyntacticDistanceParser(**settings_, seed=1).fit(CAPTIONS, steps=4, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.training_["losses"] == two.training_["losses"] != other.training_["losses"]
    assert one.perplexity(CAPTIONS) == two.perplexity(CAPTIONS)
    # In at least .15 of four captions is in one.
    assert one.function_words_[:2] == ["a", "the"]


def test_files_give_the_same_parser(parser, tmp_path):
    folder = parser.save(tmp_path / "p")
    again = SyntacticDistanceParser.load(folder, device="cpu")
    for a, b in zip(parser.parse(CAPTIONS), again.parse(CAPTIONS)):
        assert np.array_equal(a.distances, b.distances)
        assert np.array_equal(a.heights, b.heights)
    assert again.phrases(CAPTIONS) == parser.phrases(CAPTIONS)
    assert again.perplexity(CAPTIONS) == parser.perplexity(CAPTIONS)
    assert sorted(p.name for p in folder.iterdir()) == ["parser.json", "parser.safetensors"]
    record = json.loads((folder / "parser.json").read_text())
    del record["seal"]
    write_sealed_json(folder / "parser.json", {**record, "format": 99})
    with pytest.raises(DataError, match="format 99"):
        SyntacticDistanceParser.load(folder)
    write_sealed_json(folder / "parser.json", {**record, "sha256": "0"})
    with pytest.raises(DataError, match="not the file"):
        SyntacticDistanceParser.load(folder)
    with pytest.raises(DataError, match="no parser"):
        SyntacticDistanceParser.load(tmp_path)


def test_characters_as_words_for_scripts_without_spaces():
    captions = ["一只猫在桌子上", "一只狗在房子里", "猫和狗", "狗在桌子上"]
    found = SyntacticDistanceParser(
        dim=8, heads=2, pattern=r"\w", min_count=1, function_words=["在", "和"], device="cpu"
    ).fit(captions, steps=3, progress=False)
    (tree,) = found.parse(["猫在桌子上"])
    assert [w.text for w in tree.words] == list("猫在桌子上")
    assert "".join(p.text for p in found.phrases(["猫和狗"])[0]) == "猫狗"


def test_a_plain_model_has_no_trees():
    plain = SyntacticDistanceParser(dim=8, heads=2, min_count=1, device="cpu")
    plain.fit(CAPTIONS, steps=2, structured=False, progress=False)
    assert plain.perplexity(CAPTIONS) > 1
    with pytest.raises(ConfigError, match="no trees"):
        plain.parse(CAPTIONS)


@pytest.mark.parametrize(
    ("settings_", "match"),
    [
        ({"dim": 9}, "multiple of heads"),
        ({"parser_width": 4}, "odd"),
        ({"head": "firts"}, "did you mean 'first'"),
        ({"function_words": 2.0}, "share"),
        ({"function_words": "a the"}, "one string"),
        ({"pattern": "("}, "pattern"),
        ({"layers": 0}, "layers=0"),
        ({"dropout": 1.0}, "dropout"),
        ({"max_length": 1}, "max_length"),
    ],
)
def test_bad_settings_are_named(settings_, match):
    with pytest.raises(ConfigError, match=match):
        SyntacticDistanceParser(**settings_)


def test_bad_captions_are_named():
    built = SyntacticDistanceParser(dim=8, heads=2, device="cpu")
    with pytest.raises(ConfigError, match="fit"):
        built.parse(["a dog"])
    with pytest.raises(ConfigError, match="learned nothing"):
        built.save("unused")
    with pytest.raises(DataError, match="one string"):
        built.fit("a dog")
    with pytest.raises(DataError, match="two words"):
        built.fit(["dog", ""])
    with pytest.raises(DataError, match="min_count"):
        built.fit(["a dog"])
    with pytest.raises(ConfigError, match="steps"):
        built.fit(CAPTIONS, steps=0)


def test_phrases_are_found_by_a_callable(parser):
    frame = find_phrases(CAPTIONS, engine=parser.phrases)
    assert [tuple(r) for r in frame[["phrase", "start", "end", "head"]].to_numpy()] == [
        tuple(p) for several in parser.phrases(CAPTIONS) for p in several
    ]
    # Bare places: the last word is the main noun; stop words leave phrases out.
    bare = lambda texts: [[(2, len(t))] for t in texts]  # noqa: E731
    assert find_phrases(["a red DOG", "a kite"], bare)["head"].tolist() == ["dog", "kite"]
    assert find_phrases(["a red DOG", "a kite"], bare, stop=["kite"])["phrase"].tolist() == ["red DOG"]
    with pytest.raises(DataError, match="0 texts for 1"):
        find_phrases(["a"], lambda texts: [])
    with pytest.raises(DataError, match=r"\(2, 99\)"):
        find_phrases(["a dog"], lambda texts: [[(2, 99)]])


def test_grounding_takes_its_phrases(parser):
    names = ["dog", "house", "cat", "mat"]
    told = {f"{n}{k}": [f"a {n}"] for n in names for k in range(20)}
    best = pd.DataFrame({"voxel": 0, "rank": range(1, 6), "stimulus": [f"dog{k}" for k in range(5)]})

    def embed_text(texts):
        return np.array([[float(n in t) for n in names] for t in texts]) + 0.01

    checker = GroundingChecker(np.eye(4)[:, :1], best, told, embed_text, centre=False, engine=parser.phrases)
    found = checker.check(pd.DataFrame({"voxel": [0], "rank": [1], "caption": ["a dog in the house"]})).phrases
    assert found[["phrase", "start", "verdict"]].values.tolist() == [
        ["dog", 2, "supported"],
        ["house", 13, "unsupported"],
    ]


@pytest.mark.parametrize("grammar", GRAMMARS)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_planted_captions_have_binary_trees_of_both_sides(grammar, seed):
    captions = planted_captions(60, grammar, seed=seed)
    assert captions == planted_captions(60, grammar, seed=seed)
    golds = [c.tree for c in captions]
    counts = [len(c.text.split()) for c in captions]
    assert max(counts) <= 14
    assert all(len(distances_from_tree(t)) == n - 1 == len(tree_spans(t)) for t, n in zip(golds, counts))
    rng = np.random.default_rng(0)
    for baseline in (right_branching, left_branching, lambda n: random_tree(n, rng)):
        assert bracket_f1([baseline(n) for n in counts], golds) < 0.6


@pytest.mark.slow
def test_a_short_training_finds_planted_phrases():
    """Seconds of training on short captions; the claim at full length is in tests/claims."""
    captions = planted_captions(1700, max_words=7, seed=7)
    learned, tested = [c.text for c in captions[:1500]], captions[1500:]
    built = SyntacticDistanceParser(dim=32, seed=2, device="cpu").fit(learned, steps=1000, progress=False)
    counts, golds = [len(c.text.split()) for c in tested], [c.tree for c in tested]
    found = bracket_f1([b.tree for b in built.parse([c.text for c in tested])], golds)
    rng = np.random.default_rng(0)
    for baseline in (right_branching, left_branching, lambda n: random_tree(n, rng)):
        assert found > bracket_f1([baseline(n) for n in counts], golds) + 0.1
    # A word of the right kind and topic is one of about ten; all words are 136.
    assert built.perplexity([c.text for c in tested]) < 16


def test_the_parser_is_an_engine_of_phrases_by_name(monkeypatch):
    from neuroenc.captions.text import _parser

    # A few steps instead of minutes: what is tested is the way there.
    fit = _parser.SyntacticDistanceParser.fit
    monkeypatch.setattr(_parser.SyntacticDistanceParser, "fit", lambda self, texts, **o: fit(self, texts, steps=3, **o))
    captions = [c.text for c in planted_captions(300, max_words=7, seed=3)]
    found = find_phrases(captions, "syntactic")
    assert len(found)
    assert all(captions[r.caption][r.start : r.end] == r.phrase for r in found.itertuples())
    with pytest.raises(ConfigError, match="did you mean 'syntactic'"):
        find_phrases(captions, "syntax")


def test_captions_cut_for_training_are_told():
    parser = SyntacticDistanceParser(
        dim=8, layers=1, heads=1, parser_layers=1, parser_width=3, min_count=1, max_length=4
    )
    with pytest.warns(UserWarning, match=r"2 of 4 captions have more than max_length=4 words \(up to 6\)"):
        parser.fit(["a red dog near a house", "a dog"] * 2, steps=1, progress=False)
