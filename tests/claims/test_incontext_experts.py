"""Claim about experts with enforced routing (Hallee et al. 2024, arXiv:2401.15713), in in-context encoders: one model
with a feed-forward network for each group of voxels is as good as a model for each group, and better than a dense one.

Three groups of voxels whose weights lie along four of twelve directions each (a twentieth of the variance along the
others); 12 trials of which half the variance is noise, so that a voxel's trials say little about its group. A dense
model of the published form is trained on all of them, and then as many steps again: as it is; with experts that begin
as its copies; with the same experts and voxels that were given the names of groups at random; and as a model for each
group, on a third of the steps each, that is on as many of the group's episodes. Score: explained variance of noiseless
responses of new voxels to new stimuli. Margins, seed and sizes were fixed before any of it ran: experts within .01 of
separate models and .03 above the dense one; shuffled names lose that gain (at most .01 above dense).
"""

import copy

import numpy as np
import pytest

from neuroenc.encoders import InContextEncoder
from neuroenc.encoders.incontext import ResponseEpisodes, make_model, train_stage, validation_episodes

SEED, GROUPS, FEATURES, SUPPORT, VOXELS, STEPS = 23, ("a", "b", "c"), 12, 12, 300, 900
STAGE = {
    "support": (SUPPORT, SUPPORT),
    "query": 40,
    "voxels": 64,
    "lr": 2e-3,
    "evaluate_every": 100,
    "stop_patience": 100,
    "seed": SEED,
    "device": "cpu",
}

pytestmark = pytest.mark.slow


def subject(rng, trials):
    """Features, noisy responses, noiseless responses and the group of voxels."""
    names = np.repeat(GROUPS, VOXELS // len(GROUPS))
    sd = np.where(np.arange(FEATURES) // 4 == np.array([GROUPS.index(n) for n in names])[:, None], 1.0, 0.05**0.5)
    weights = sd * rng.standard_normal((len(names), FEATURES))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    X = rng.standard_normal((trials, FEATURES)).astype(np.float32)
    clean = np.sqrt(0.5) * X @ weights.T
    return X, (clean + np.sqrt(0.5) * rng.standard_normal(clean.shape)).astype(np.float32), clean, names


def accuracy(route, new):
    """Mean over supports and voxels; ``route`` gives the encoder of a group."""
    X, Y, clean, names = new
    shares = []
    for start in range(0, 10 * SUPPORT, SUPPORT):
        for name in GROUPS:
            own, rows = names == name, slice(start, start + SUPPORT)
            found = route(name).fit(X[rows], Y[rows][:, own]).predict(X[200:])
            error = ((found - clean[200:, own]) ** 2).mean(axis=0)
            shares.append(1 - (error / clean[200:, own].var(axis=0)).mean())
    return float(np.mean(shares))


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(SEED)
    people = [subject(rng, 400) for _ in range(4)]
    known, new = people[:2], subject(rng, 400)
    pairs, names = [p[:2] for p in known], [p[3] for p in known]
    held = [p[:2] for p in people[2:]]

    def sources(names_known, names_held):
        return (
            ResponseEpisodes(pairs, groups=names_known),
            ResponseEpisodes(held, groups=names_held),
        )

    def train(model, both, steps):
        validation = validation_episodes(both[1], (SUPPORT,), n_voxels=64, repeats=9, query=40, seed=SEED)
        train_stage(model, both[0], "extend", validation=validation, max_steps=steps, **STAGE)
        return model

    true = sources(names, [p[3] for p in people[2:]])
    mixed = sources(*([rng.permutation(p[3]) for p in some] for some in (people[:2], people[2:])))
    dense = make_model("small", n_features=FEATURES, dim=32, depth=2, heads=4, hidden=64, form="published", seed=SEED)
    train(dense, true, STEPS)
    routed = train(dense.upcycle(GROUPS), true, STEPS)
    shuffled = train(dense.upcycle(GROUPS), mixed, STEPS)
    separate = {}
    for name in GROUPS:
        own = ResponseEpisodes([(x, y[:, g == name]) for x, y, _, g in known])
        apart = ResponseEpisodes([(x, y[:, g == name]) for x, y, _, g in people[2:]])
        separate[name] = train(copy.deepcopy(dense), (own, apart), STEPS // 3)
    train(dense, true, STEPS)
    plain = {"response_scale": "as-is", "device": "cpu"}
    # A voxel of a new subject gets a name at random, too: it is the expert that is asked.
    turned = dict(zip(GROUPS, rng.permutation(GROUPS)))
    return {
        "dense": accuracy(lambda name: InContextEncoder(dense, **plain), new),
        "experts": accuracy(lambda name: InContextEncoder(routed, expert=name, **plain), new),
        "separate": accuracy(lambda name: InContextEncoder(separate[name], **plain), new),
        "shuffled": accuracy(lambda name: InContextEncoder(shuffled, expert=str(turned[name]), **plain), new),
        "wrong": accuracy(
            lambda name: InContextEncoder(routed, expert=GROUPS[(GROUPS.index(name) + 1) % 3], **plain), new
        ),
        "parameters": [sum(p.numel() for p in m.parameters()) for m in (routed, dense)],
    }


def test_experts_are_as_good_as_separate_models_with_fewer_parameters(found):
    """.447 against .448, with 53,812 parameters against 85,788."""
    assert found["experts"] >= found["separate"] - 0.01, found
    assert found["parameters"][0] < 3 * found["parameters"][1], found


def test_experts_are_better_than_one_dense_network(found):
    """.447 against .245."""
    assert found["experts"] >= found["dense"] + 0.03, found


@pytest.mark.xfail(strict=True, reason=".285 against .245 dense: a fifth of the gain of .202 stays without true names")
def test_shuffled_names_lose_the_gain(found):
    assert found["shuffled"] <= found["dense"] + 0.01, found


def test_the_expert_of_another_group_is_worse_than_the_dense_network(found):
    assert found["wrong"] < found["dense"], found
