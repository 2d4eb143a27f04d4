"""The search engine against enumeration, against the released loop, against transformers, and against itself."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions.decoding._sampling import CausalStep, nucleus, sample
from neuroenc.captions.decoding._search import beam_search
from neuroenc.embedding import prepare
from steps import FunctionStep

STOP = 0


class Markov:
    """Logits that depend on item, place and the two last tokens: nothing a first-order shortcut could solve."""

    def __init__(self, seed=0, n=3, vocabulary=4, sharp=1.5, longest=12):
        rng = np.random.default_rng(seed)
        shape = (n, longest, vocabulary + 1, vocabulary + 1, vocabulary)
        self.table = torch.from_numpy(sharp * rng.standard_normal(shape))
        self.n, self.vocabulary = n, vocabulary

    def __call__(self, items, tokens):
        t = tokens.shape[1]
        last = tokens[:, -1] + 1 if t else torch.zeros_like(items)
        before = tokens[:, -2] + 1 if t > 1 else torch.zeros_like(items)
        return self.table[items, t, before, last]

    def step(self, only=None):
        return FunctionStep(self if only is None else lambda i, x: self(i + only, x), self.n if only is None else 1)

    def logp(self, item, y, temperature=1.0):
        """Sum of log-probabilities of one sequence, a token at a time."""
        total = 0.0
        for t in range(len(y)):
            logits = self(torch.tensor([item]), torch.tensor([y[:t]], dtype=torch.int64).reshape(1, t))
            total += float(torch.log_softmax(logits / temperature, -1)[0, y[t]])
        return total


def everything(model, item, longest, temperature=1.0, allowed=lambda y: True):
    """All sequences that end with the stop token or are as long as can be, with their log-probabilities."""
    found = {}
    for length in range(1, longest + 1):
        for y in itertools.product(range(model.vocabulary), repeat=length):
            ends = y[-1] == STOP
            if STOP not in y[:-1] and (ends or length == longest) and allowed(y):
                found[y] = model.logp(item, list(y), temperature)
    return found


def released(model, item, beams, longest, temperature=1.0):
    """One voxel, no cache: the loop of the released ClipCap code, line by line."""
    tokens = scores = None
    lengths, stopped = torch.ones(beams), torch.zeros(beams, dtype=torch.bool)
    for _ in range(longest):
        history = torch.zeros((1, 0), dtype=torch.int64) if tokens is None else tokens
        logits = model(torch.full((len(history),), item), history) / temperature
        logits = logits.softmax(-1).log().float()
        if scores is None:
            scores, new = logits.topk(beams, -1)
            new, scores = new.permute(1, 0), scores.squeeze(0)
            tokens = new
        else:
            logits[stopped] = -float("inf")
            logits[stopped, 0] = 0
            total = scores[:, None] + logits
            lengths[~stopped] += 1
            average, new = (total / lengths[:, None]).view(-1).topk(beams, -1)
            source = new // total.shape[1]
            lengths = lengths[source]
            new = (new % total.shape[1]).unsqueeze(1)
            tokens = torch.cat((tokens[source], new), dim=1)
            scores = average * lengths
            stopped = stopped[source]
        stopped = stopped + new.eq(STOP).squeeze(1)
        if stopped.all():
            break
    scores = scores / lengths
    order = scores.argsort(descending=True)
    return [(tokens[i][: int(lengths[i])].tolist(), float(scores[i])) for i in order]


def same(found, expected, tol=1e-5):
    assert [y for y, _ in found] == [list(y) for y, _ in expected]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], atol=tol)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.6])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_with_enough_beams_the_search_is_an_enumeration(alpha, temperature):
    model = Markov(seed=1, vocabulary=3)
    found = beam_search(model.step(), stop=STOP, beams=200, max_length=4, length_penalty=alpha, temperature=temperature)
    for item in range(model.n):
        scored = {y: p / len(y) ** alpha for y, p in everything(model, item, 4, temperature).items()}
        same(found.texts(item), sorted(scored.items(), key=lambda kv: -kv[1]))
        total = sum(math.exp(float(p)) for p in found.logp[item] if torch.isfinite(p))
        assert total == pytest.approx(1.0, abs=1e-5)  # every way of the tree is there once


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_released_loop_gives_the_same_captions_and_scores(beams, seed):
    model = Markov(seed=seed, n=4, vocabulary=7)
    found = beam_search(model.step(), stop=STOP, beams=beams, max_length=10, temperature=0.8)
    for item in range(model.n):
        same(found.texts(item), released(model, item, beams, 10, 0.8))


def test_a_batch_is_its_items_one_by_one():
    model = Markov(seed=3, n=6, vocabulary=6)
    for options in ({"groups": 3}, {"groups": 2, "diversity": "words"}, {}):
        whole = beam_search(model.step(), stop=STOP, beams=6, max_length=9, **options)
        for item in range(model.n):
            alone = beam_search(model.step(item), stop=STOP, beams=6, max_length=9, **options)
            same(whole.texts(item), alone.texts(0), tol=0)
    drawn = sample(model.step(), stop=STOP, n_samples=4, max_length=9, seed=5)
    for item in range(model.n):
        alone = sample(model.step(item), stop=STOP, n_samples=4, max_length=9, seed=5, items=[item])
        same(drawn.texts(item), alone.texts(0), tol=0)


def test_groups_without_penalty_are_copies_and_one_group_is_plain():
    model = Markov(seed=4, n=3, vocabulary=6)
    plain = beam_search(model.step(), stop=STOP, beams=2, max_length=6)
    for diversity in ("hamming", "words"):
        copies = beam_search(
            model.step(), stop=STOP, beams=6, groups=3, diversity_penalty=0, max_length=6, diversity=diversity
        )
        one = beam_search(model.step(), stop=STOP, beams=2, groups=1, diversity=diversity, max_length=6)
        for item in range(model.n):
            same(one.texts(item), plain.texts(item), tol=0)
            for g in range(3):
                mine = copies.group[item] == g
                assert copies.scores[item, mine].tolist() == plain.scores[item].tolist()


def diverse_by_hand(model, item, groups, penalty, longest):
    """Groups of one beam: each takes the best token minus the penalty for what earlier groups took at that step."""
    beams = [[] for _ in range(groups)]
    for _ in range(longest):
        taken = np.zeros(model.vocabulary)
        for y in beams:
            if y and y[-1] == STOP:
                continue
            logits = model(torch.tensor([item]), torch.tensor([y], dtype=torch.int64).reshape(1, len(y)))
            token = int(np.argmax(torch.log_softmax(logits, -1)[0].numpy() - penalty * taken))
            y.append(token)
            taken[token] += 1
    return beams


@pytest.mark.parametrize("penalty", [0.3, 1.0])
def test_diverse_search_is_the_published_recursion(penalty):
    model = Markov(seed=6, n=5, vocabulary=6)
    found = beam_search(
        model.step(), stop=STOP, beams=4, groups=4, diversity_penalty=penalty, max_length=7, length_penalty=1.0
    )
    for item in range(model.n):
        order = found.group[item].argsort()
        tokens = [found.tokens[item, k][found.tokens[item, k] >= 0].tolist() for k in order]
        assert tokens == diverse_by_hand(model, item, 4, penalty, 7)
        for k, y in zip(order, tokens, strict=True):  # scores hold no penalty
            assert float(found.logp[item, k]) == pytest.approx(model.logp(item, y), abs=1e-5)


def test_distinct_bigrams_grow_with_the_penalty():
    model = Markov(seed=7, n=20, vocabulary=8)

    def distinct(penalty, diversity):
        found = beam_search(
            model.step(), stop=STOP, beams=6, groups=3, max_length=6, diversity_penalty=penalty, diversity=diversity
        )
        pairs = [{p for y, _ in found.texts(i) for p in itertools.pairwise(y)} for i in range(model.n)]
        return sum(map(len, pairs))

    for diversity in ("hamming", "words"):
        counts = [distinct(p, diversity) for p in (0.0, 0.5, 3.0)]
        assert counts[0] < counts[1] < counts[2]


def test_words_already_said_are_not_said_again_and_free_words_are():
    model = Markov(seed=8, n=10, vocabulary=8, sharp=1.0)
    options = {"stop": STOP, "beams": 2, "groups": 2, "max_length": 4, "diversity": "words", "diversity_penalty": 50.0}
    found = beam_search(model.step(), **options)
    for item in range(model.n):
        (first, _), (second, _) = sorted(
            ((set(found.tokens[item, k].tolist()) - {-1, STOP}, int(found.group[item, k])) for k in (0, 1)),
            key=lambda pair: pair[1],
        )
        assert not first & second
    free = beam_search(model.step(), token_weights=torch.zeros(8), **options)
    assert torch.equal(free.tokens[:, 0], free.tokens[:, 1])


def test_a_constraint_is_an_enumeration_of_what_it_allows():
    model = Markov(seed=9, vocabulary=4)

    def legal(y):  # no token twice in a row, and 3 only after 1
        return all(a != b for a, b in itertools.pairwise(y)) and all(
            b != 3 or a == 1 for a, b in zip((None, *y), y, strict=False)
        )

    def constraint(tokens, items):
        assert (tokens >= 0).all()  # growing hypotheses only
        return torch.tensor([[legal((*y, v)) for v in range(4)] for y in tokens.tolist()])

    found = beam_search(model.step(), stop=STOP, beams=300, max_length=4, constraint=constraint)
    for item in range(model.n):
        scored = {y: p / len(y) for y, p in everything(model, item, 4, allowed=legal).items()}
        same(found.texts(item), sorted(scored.items(), key=lambda kv: -kv[1]))
    drawn = sample(model.step(), stop=STOP, n_samples=30, max_length=4, top_p=1.0, constraint=constraint)
    assert all(legal(tuple(y)) for item in range(model.n) for y, _ in drawn.texts(item))


def test_dead_ends_end_only_the_hypotheses_that_run_into_them():
    model = Markov(seed=10, n=2, vocabulary=3)

    def constraint(tokens, items):  # item 0 may never end and never go on after 2; item 1 may go nowhere
        mask = torch.ones((len(tokens), 3), dtype=torch.bool)
        mask[:, STOP] = False
        if tokens.shape[1]:
            mask[tokens[:, -1] == 2] = False
        mask[items == 1] = False
        return mask

    found = beam_search(model.step(), stop=STOP, beams=4, max_length=3, constraint=constraint)
    assert sorted(y for y, _ in found.texts(0)) == [[1, 1, 1], [1, 1, 2]]
    assert found.texts(1) == []
    assert not found.finished.any()
    drawn = sample(model.step(), stop=STOP, n_samples=4, max_length=3, constraint=constraint)
    assert all(y == [1, 1, 1] or y == [1, 1, 2] for y, _ in drawn.texts(0))
    assert drawn.texts(1) == []


def test_nucleus_is_that_of_transformers():
    prepare()
    transformers = pytest.importorskip("transformers")
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((40, 30)) * 2)
    for p in (0.1, 0.5, 0.8, 0.99):
        theirs = transformers.TopPLogitsWarper(top_p=p)(None, logits / 0.7).softmax(-1)
        assert torch.allclose(nucleus(logits, 0.7, p, None), theirs, atol=1e-9)
    theirs = transformers.TopKLogitsWarper(top_k=4)(None, logits).softmax(-1)
    assert torch.allclose(nucleus(logits, 1.0, 1.0, 4), theirs, atol=1e-9)


def test_samples_follow_the_distribution_and_the_seed():
    model = Markov(seed=12, n=1, vocabulary=3)
    options = {"stop": STOP, "n_samples": 3000, "max_length": 3, "top_p": 1.0}
    found = sample(model.step(), seed=1, **options)
    p = {y: math.exp(v) for y, v in everything(model, 0, 3).items()}
    seen = [tuple(y) for y, _ in found.texts(0)]
    names = sorted(p)
    counts, expected = [seen.count(y) for y in names], [3000 * p[y] for y in names]
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    again, other = sample(model.step(), seed=1, **options), sample(model.step(), seed=2, **options)
    assert torch.equal(found.tokens, again.tokens)
    assert found.tokens.shape != other.tokens.shape or not torch.equal(found.tokens, other.tokens)
    for k in range(5):
        y, s = found.texts(0)[k]
        assert s == pytest.approx(model.logp(0, y) / len(y), abs=1e-5)


def test_the_first_samples_do_not_depend_on_how_many_follow():
    model = Markov(seed=13, n=2, vocabulary=5)
    few = sample(model.step(), stop=STOP, n_samples=2, max_length=8)
    many = sample(model.step(), stop=STOP, n_samples=6, max_length=8)
    for item in range(2):
        assert {tuple(y) for y, _ in few.texts(item)} <= {tuple(y) for y, _ in many.texts(item)}


@pytest.fixture(scope="module")
def gpt():
    prepare()
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.5
    )
    return transformers.GPT2LMHeadModel(config).eval()


def test_fixed_length_beams_are_those_of_transformers(gpt):
    prefix = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs = gpt.generate(
            inputs_embeds=prefix,
            attention_mask=torch.ones(3, 5, dtype=torch.long),
            num_beams=4,
            max_new_tokens=7,
            min_new_tokens=7,
            do_sample=False,
            num_return_sequences=4,
            eos_token_id=39,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            length_penalty=1.0,
        )

    def never_stop(tokens, items):
        mask = torch.ones((len(tokens), 40), dtype=torch.bool)
        mask[:, 39] = False
        return mask

    ours = beam_search(CausalStep(gpt, prefix), stop=39, beams=4, max_length=7, constraint=never_stop)
    assert torch.equal(ours.tokens.reshape(12, 7), theirs.sequences)
    assert torch.allclose(ours.scores.reshape(-1), theirs.sequences_scores, atol=1e-4)


def test_greedy_with_a_stop_is_that_of_transformers(gpt):
    prefix = torch.randn(8, 3, 32, generator=torch.Generator().manual_seed(2))
    ours = beam_search(CausalStep(gpt, prefix), stop=7, beams=1, max_length=20)
    with torch.inference_mode():
        theirs = gpt.generate(
            inputs_embeds=prefix,
            attention_mask=torch.ones(8, 3, dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=7,
            pad_token_id=-1,
        )
    assert torch.equal(ours.tokens[:, 0], theirs)


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"groups": 2, "diversity": "words"}])
def test_cached_is_uncached(gpt, options):
    prefix = torch.randn(6, 4, 32, generator=torch.Generator().manual_seed(3))
    found = [
        beam_search(CausalStep(gpt, prefix, cache=cache), stop=7, beams=4, max_length=15, **options)
        for cache in (True, False)
    ]
    assert torch.equal(found[0].tokens, found[1].tokens)
    assert torch.allclose(found[0].scores, found[1].scores, atol=1e-5)
    drawn = [sample(CausalStep(gpt, prefix, cache=c), stop=7, n_samples=3, max_length=15) for c in (True, False)]
    assert torch.equal(drawn[0].tokens, drawn[1].tokens)


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "OPTForCausalLM"])
def test_other_causal_models_are_cached_as_they_are_uncached(kind):
    prepare()
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"max_position_embeddings": 32, "initializer_range": 0.5}
    if kind == "LlamaForCausalLM":
        config = transformers.LlamaConfig(**shape, intermediate_size=32, num_key_value_heads=1)
    else:
        config = transformers.OPTConfig(**shape, ffn_dim=32, word_embed_proj_dim=16, init_std=0.5)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    prefix = torch.randn(3, 4, 16)
    found = [beam_search(CausalStep(model, prefix, cache=c), stop=7, beams=3, max_length=10) for c in (True, False)]
    assert torch.equal(found[0].tokens, found[1].tokens)
    assert torch.allclose(found[0].scores, found[1].scores, atol=1e-4)


def test_language_model_batches_are_their_items(gpt):
    prefix = torch.randn(7, 4, 32, generator=torch.Generator().manual_seed(4))
    whole = beam_search(CausalStep(gpt, prefix), stop=7, beams=5, max_length=12)
    for item in range(7):
        alone = beam_search(CausalStep(gpt, prefix[item : item + 1]), stop=7, beams=5, max_length=12)
        same(whole.texts(item), alone.texts(0))


def test_illegal_settings_say_so():
    step = Markov().step()
    for options in (
        {"beams": 0},
        {"beams": 4, "groups": 3},
        {"temperature": 0.0},
        {"diversity": "hamnig"},
        {"max_length": 0},
        {"diversity_penalty": -1.0},
    ):
        with pytest.raises(ConfigError, match=r"(?i)legal"):
            beam_search(step, stop=STOP, **options)
    for options in ({"top_p": 0.0}, {"n_samples": 0}, {"temperature": -1.0}, {"top_k": 0}):
        with pytest.raises(ConfigError):
            sample(step, stop=STOP, **options)
    nan = FunctionStep(lambda items, tokens: torch.full((len(items), 3), torch.nan), 2)
    for search in (beam_search, sample):
        with pytest.raises(DataError, match="NaN"):
            search(nan, stop=STOP)
    with pytest.raises(DataError, match="constraint gave"):
        beam_search(step, stop=STOP, constraint=lambda tokens, items: torch.ones(len(tokens), 2))
