"""Claims about core units (CoreInfer). Fixed before the first run:

1. A ReLU network of 512 hidden units, trained on eight topics that each ask for a linear map of their own; 40 captions
   a topic of twelve tokens each, cores (40 % of a token's positive activations, 30 % of the units) fitted on 30 of
   them. Three seeds, each: Jaccard overlap of cores within a topic above .6, between topics below .3. On the ten
   captions left out, cosine of the sliced network's outputs to the dense one's is at least .98 with the topic's core,
   and at most .9 with as many random units; with another topic's core it is below the topic's own.
   FAILED in part: .929, .928 and .955 with the topic's core (random .52 to .57). 44 to 46 % of the units are active in
   a token here; choosing by mean contribution to the output instead gives .941, .934 and .964.
2. An untrained network of the same size has no such cores: within less between is under half of the trained one's.
   FAILED: .57 to .60 untrained against .55 to .60 trained. What overlaps are the inputs of a topic; that cores differ
   between topics does not show that a network has learned to tell them apart.
3. MiniLM on the simulated world's captions by family (faces, bodies, places, words, food; one family a scene): overlap
   within above between in every layer, and the sliced model at 30 % of the units nearer to the dense one with the
   category's core than with random units. Measured: within .35 to .54, between .31 to .52; cosine .682 against .609.

Curves on MiniLM and SmolLM2: see the benchmarks' README.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from neuroenc.embedding import CoreUnits, TextEmbedder, unit_use

torch = pytest.importorskip("torch")

TOPICS, TOKENS, CAPTIONS, FIT = 8, 12, 40, 30


def network(seed, steps=400):
    """The network, captions (stimulus, token, feature) and topics."""
    rng = np.random.default_rng(seed)
    centres = 2.0 * rng.standard_normal((TOPICS, 32))
    maps = rng.standard_normal((TOPICS, 32, 16)) / np.sqrt(32)
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(32, 512), torch.nn.ReLU(), torch.nn.Linear(512, 16))
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        t = rng.integers(0, TOPICS, 256)
        x = centres[t] + rng.standard_normal((256, 32))
        y = np.einsum("bi,bij->bj", x, maps[t])
        loss = ((net(torch.tensor(x, dtype=torch.float32)) - torch.tensor(y, dtype=torch.float32)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    topics = np.repeat(np.arange(TOPICS), CAPTIONS)
    captions = centres[topics][:, None] + rng.standard_normal((len(topics), TOKENS, 32))
    return net.eval(), captions.astype(np.float32), topics.astype(str)


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean())


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]


@lru_cache
def measured(seed):
    """Overlap within and between topics, cosines with own, random and another topic's units, overlap untrained."""
    net, captions, topics = network(seed)
    fit = np.tile(np.arange(CAPTIONS) < FIT, TOPICS)
    use = unit_use(net, captions)
    cores = CoreUnits(0.3).fit(use[fit], topics[fit])
    overlap = cores.overlap(use[~fit], topics[~fit])
    within, between = float(overlap["within"][0]), float(overlap["between"][0])
    random, found = cores.random(seed), []
    with torch.no_grad():
        for k in range(TOPICS):
            x = torch.tensor(captions[~fit & (topics == str(k))])
            dense = net(x)
            ways = (cores, str(k)), (random, str(k)), (cores, str((k + 1) % TOPICS))
            found.append([cosine(c.apply(net, name)(x), dense) for c, name in ways])
    own, chance, other = np.mean(found, axis=0)
    untrained = CoreUnits(0.3).overlap(unit_use(network(seed, 0)[0], captions[~fit]), topics[~fit])
    blank = float(untrained["within"][0] - untrained["between"][0])
    print(f"\nJaccard within {within:.2f}, between {between:.2f}, untrained: difference {blank:.2f}")
    print(f"cosine core {own:.3f}, random {chance:.3f}, another topic's {other:.3f}")
    return within, between, own, chance, other, blank


@pytest.mark.parametrize("seed", SEEDS)
def test_topics_have_cores_of_their_own(seed):
    within, between, own, chance, other, _ = measured(seed)
    assert within > 0.6
    assert between < 0.3
    assert chance <= 0.9
    assert other < own


@pytest.mark.xfail(
    strict=True, reason="cosine .929, .928 and .955 at 30 % of the units, of which 44 to 46 % are active"
)
@pytest.mark.parametrize("seed", SEEDS)
def test_cores_carry_their_topic(seed):
    assert measured(seed)[2] >= 0.98


@pytest.mark.xfail(strict=True, reason="within less between: .57 to .60 untrained, .55 to .60 trained")
@pytest.mark.parametrize("seed", SEEDS)
def test_an_untrained_network_has_no_cores(seed):
    within, between, *_, blank = measured(seed)
    assert blank < (within - between) / 2


@pytest.mark.slow
def test_categories_have_cores_in_minilm():
    from neuroenc.data import simulate_world

    shown = simulate_world(600)
    alone = np.flatnonzero(shown.table["n_families"] == 1)
    kinds = shown.table["family"].to_numpy().astype(str)[alone]
    texts = [shown.captions[k][0] for k in alone]
    embedder = TextEmbedder("minilm", cache=False, progress=False, device="cpu")
    fit = np.arange(len(texts)) % 4 > 0
    use = unit_use(embedder, texts)
    cores = CoreUnits(0.3).fit(use[fit], kinds[fit])
    overlap = cores.overlap(use, kinds)
    print(f"\nwithin {overlap['within'].values.round(3)}, between {overlap['between'].values.round(3)}")
    random, found = cores.random(0), []
    for kind in dict.fromkeys(kinds.tolist()):
        own = [t for t, k, f in zip(texts, kinds, fit) if k == kind and not f]
        dense = embedder.embed(own).values
        found.append([(c.apply(embedder, kind).embed(own).values * dense).sum(1).mean() for c in (cores, random)])
    print("cosine, core and random:", np.mean(found, axis=0).round(3))
    assert (overlap["within"] > overlap["between"]).all()
    assert np.mean(found, axis=0)[0] > np.mean(found, axis=0)[1]
