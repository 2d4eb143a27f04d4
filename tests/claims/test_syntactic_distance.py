"""Claims about unsupervised phrases (Shen et al., StructFormer, ACL 2021), on captions with planted brackets.

Margins were fixed before these seeds and the second grammar were looked at: after 2000 steps of guessing hidden words
(about a minute of one core) the unlabelled F1 of inner spans is at least .7 on average over two grammars and two seeds,
and in each of the four runs .1 over right-branching, left-branching and random trees; the perplexity of hidden words in
captions that were not learned from is at most 1.02 times that of the same network with plain attention. The control
learns from captions whose words were shuffled: its trees stay .15 below.

Sizes, steps and learning rate were settled on other seeds (100 to 102) of the first grammar, where 101 came to .85.
There it was also seen that an earlier draft of it, in which verbs went with their subjects instead of their objects, is
parsed as ((subject verb) object), F1 .50 to .73: trees follow what ties words together. That draft is gone.

Found: F1 .83 and .74 (prepositions), .72 and .59 (postpositions), on average .72, where the best of right-branching,
left-branching and random trees comes to .43, .41, .29 and .28; shuffled .44. Perplexity over that of plain attention:
.978, 1.001, .965, .965. One of the four is under .7: seeds differ more than the average is over its margin.
"""

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

SEEDS = (1, 2)
GRAMMARS = ("prepositions", "postpositions")
N_LEARNED, N_TESTED = 4000, 500
STEPS = 2000


def fitted(captions, seed, **options):
    import torch

    from neuroenc.captions import SyntacticDistanceParser

    torch.set_num_threads(1)
    return SyntacticDistanceParser(device="cpu", seed=seed).fit(captions, steps=STEPS, progress=False, **options)


def f1_of(parser, tested):
    from brackets import bracket_f1

    return bracket_f1([b.tree for b in parser.parse([c.text for c in tested])], [c.tree for c in tested])


@pytest.fixture(scope="module")
def captions():
    from planted_phrases import planted_captions

    found = {}
    for grammar in GRAMMARS:
        for seed in SEEDS:
            several = planted_captions(N_LEARNED + N_TESTED, grammar, seed=seed)
            found[grammar, seed] = several[:N_LEARNED], several[N_LEARNED:]
    return found


@pytest.fixture(scope="module")
def runs(captions):
    """F1 and perplexity of each run, and the F1 of trees that know nothing."""
    from brackets import bracket_f1, left_branching, random_tree, right_branching

    rows = {}
    for (grammar, seed), (learned, tested) in captions.items():
        parser = fitted([c.text for c in learned], seed)
        counts, golds = [len(c.text.split()) for c in tested], [c.tree for c in tested]
        rng = np.random.default_rng(seed)
        rows[grammar, seed] = {
            "f1": f1_of(parser, tested),
            "right": bracket_f1([right_branching(n) for n in counts], golds),
            "left": bracket_f1([left_branching(n) for n in counts], golds),
            "random": bracket_f1([random_tree(n, rng) for n in counts], golds),
            "perplexity": parser.perplexity([c.text for c in tested]),
            "seconds": parser.training_["seconds"],
        }
        print(grammar, seed, {k: round(v, 3) for k, v in rows[grammar, seed].items()})
    return rows


def test_planted_brackets_are_found(runs):
    assert np.mean([r["f1"] for r in runs.values()]) >= 0.7, runs


def test_trees_are_better_than_those_that_know_nothing(runs):
    gains = {k: r["f1"] - max(r["right"], r["left"], r["random"]) for k, r in runs.items()}
    assert min(gains.values()) >= 0.1, gains


def test_without_order_there_is_nothing_to_find(captions, runs):
    learned, tested = captions["prepositions", 1]
    rng = np.random.default_rng(0)
    shuffled = [" ".join(rng.permutation(c.text.split())) for c in learned]
    control = f1_of(fitted(shuffled, 1), tested)
    print("shuffled", control)
    assert runs["prepositions", 1]["f1"] - control >= 0.15


def test_attention_along_the_tree_costs_no_perplexity(captions, runs):
    ratios = {}
    for (grammar, seed), (learned, tested) in captions.items():
        plain = fitted([c.text for c in learned], seed, structured=False)
        ratios[grammar, seed] = runs[grammar, seed]["perplexity"] / plain.perplexity([c.text for c in tested])
        print("ratio", grammar, seed, ratios[grammar, seed])
    assert np.mean(list(ratios.values())) <= 1.02, ratios
