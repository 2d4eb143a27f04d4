"""Claims about hard negatives and soft labels. Fixed before the first run:

1. Owner-query filter (From Generator to Embedder, SaHa). 1,000 stimuli of 32 latent dimensions, 20 % of them copies
   of others under another id; query and candidate of each are its latents with noise of .4. Of the hardest negative
   of each query, the share that is a true one is under .8 plain and at least .95 with `OwnerQuery(0.7)`; with the
   owners' queries shuffled it is under .8 again. Three seeds, each.
2. Training on them. Linear maps of 40 mixed features with nuisances, 150 steps of 64 pairs, two mined negatives a
   query; share of 500 new queries that find their candidate first, five seeds: filtered at least .02 above
   unfiltered, and above none.
3. Soft labels (LG-ANNA-Embedding). 400 queries and candidates of graded relevance, 40 % of the hard labels random, a
   teacher with noise; NDCG at 10 of 200 new queries, five seeds: with `distill_kl` at least .02 above without.
"""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc.embedding import distill_kl, info_nce
from neuroenc.retrieval import OwnerQuery, mine_hard_negatives

torch = pytest.importorskip("torch")


def with_copies(rng, n=1000, width=32, noise=0.4):
    """Latents of stimuli, of which a fifth are copies, and noisy queries and candidates of them."""
    z = rng.standard_normal((n, width))
    meaning = np.arange(n)
    meaning[-n // 5 :] = rng.permutation(n - n // 5)[: n // 5]
    z = z[meaning]
    return meaning, z + noise * rng.standard_normal(z.shape), z + noise * rng.standard_normal(z.shape)


def true_share(meaning, found):
    hardest = found.indices[:, 0]
    known = hardest >= 0
    assert known.mean() > 0.95
    return float((meaning[hardest[known]] != meaning[known]).mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_owner_queries_tell_false_negatives(seed):
    rng = np.random.default_rng(seed)
    meaning, queries, candidates = with_copies(rng)
    plain = true_share(meaning, mine_hard_negatives(queries, candidates, k=1))
    filtered = true_share(meaning, mine_hard_negatives(queries, candidates, k=1, filters=[OwnerQuery(0.7)]))

    class Shuffled(OwnerQuery):
        def keep(self, ranked):
            return super().keep(ranked._replace(owners=rng.permuted(ranked.owners, axis=1)))

    shuffled = true_share(meaning, mine_hard_negatives(queries, candidates, k=1, filters=[Shuffled(0.7)]))
    print(f"\ntrue negatives: plain {plain:.3f}, filtered {filtered:.3f}, shuffled owners {shuffled:.3f}")
    assert plain < 0.8
    assert filtered >= 0.95
    assert shuffled < 0.8


def mixed(z, rng_map, rng, width=40):
    """Features that mix latents with as many nuisances of twice their size."""
    whole = np.concatenate([z, 2 * rng.standard_normal(z.shape)], 1)
    return np.tanh(whole @ rng_map.standard_normal((whole.shape[1], width)) / 4).astype(np.float32)


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def trained_on_negatives(arm, seed):
    """Share of new queries that find their candidate first."""
    rng = np.random.default_rng(seed)
    meaning, _, _ = with_copies(rng)
    latents = rng.standard_normal((1000, 16))
    latents_new, sides = rng.standard_normal((500, 16)), []
    for side in range(2):
        x = mixed(latents[meaning], np.random.default_rng([seed, side]), rng)
        new = mixed(latents_new, np.random.default_rng([seed, side]), rng)
        sides.append((torch.from_numpy(x), torch.from_numpy(new)))
    (q, q_new), (c, c_new) = sides
    torch.manual_seed(seed)
    maps = torch.nn.ModuleList([torch.nn.Linear(40, 16), torch.nn.Linear(40, 16)])
    optimiser = torch.optim.Adam(maps.parameters(), lr=0.01)
    mined = None
    for step in range(150):
        if arm != "none" and step >= 30 and step % 30 == 0:
            with torch.no_grad():
                vectors = [m(x).numpy() for m, x in zip(maps, (q, c))]
            filters = [OwnerQuery(0.7)] if arm == "filtered" else []
            mined = mine_hard_negatives(*vectors, k=2, filters=filters).indices
        rows = rng.permutation(len(q))[:64]
        hard = None
        if mined is not None:
            hard = unit(maps[1](c[np.where(mined[rows] < 0, rows[:, None], mined[rows])]))
        loss = info_nce(unit(maps[0](q[rows])), unit(maps[1](c[rows])), hard=hard, temperature=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        found = (unit(maps[0](q_new)) @ unit(maps[1](c_new)).T).argmax(1).numpy()
    return float((found == np.arange(500)).mean())


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True, reason="found first: no mined negatives .116, all of them .084, filtered .088: mined ones do not help"
)
def test_filtered_negatives_train_better():
    found = {arm: np.mean([trained_on_negatives(arm, s) for s in range(5)]) for arm in ("none", "all", "filtered")}
    print(f"\nfound first: {found}")
    assert found["filtered"] >= found["all"] + 0.02
    assert found["filtered"] >= found["none"] + 0.02


def ndcg(scores, gain, k=10):
    discount = 1 / np.log2(np.arange(2, k + 2))
    top = np.take_along_axis(gain, np.argsort(-scores, axis=1)[:, :k], 1)
    return float(((top * discount).sum(1) / (np.sort(gain, axis=1)[:, ::-1][:, :k] * discount).sum(1)).mean())


def trained_on_labels(soft, seed):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, 12))
    z = [centres[rng.integers(0, 40, n)] + 0.5 * rng.standard_normal((n, 12)) for n in (400, 200)]
    (q, c), (q_new, c_new) = [
        [torch.from_numpy(mixed(part, np.random.default_rng([seed, side]), rng)) for side in range(2)] for part in z
    ]
    likeness = [x @ x.T / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(x, axis=1)[None] for x in z]
    teacher = torch.from_numpy((likeness[0] + 0.2 * rng.standard_normal((400, 400))).astype(np.float32)) / 0.1
    label = np.where(rng.random(400) < 0.4, rng.integers(0, 400, 400), np.arange(400))
    torch.manual_seed(seed)
    maps = torch.nn.ModuleList([torch.nn.Linear(40, 16), torch.nn.Linear(40, 16)])
    optimiser = torch.optim.Adam(maps.parameters(), lr=0.01)
    for _ in range(200):
        rows = rng.permutation(400)[:64]
        a, b = unit(maps[0](q[rows])), unit(maps[1](c[label[rows]]))
        loss = info_nce(a, b, temperature=0.1)
        if soft:
            loss = loss + distill_kl(a @ b.T / 0.1, teacher[rows][:, label[rows]])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        scores = (unit(maps[0](q_new)) @ unit(maps[1](c_new)).T).numpy()
    return ndcg(scores, 2.0 ** (4 * np.maximum(likeness[1], 0)) - 1)


@pytest.mark.slow
def test_soft_labels_help_where_hard_ones_are_noisy():
    found = {soft: np.mean([trained_on_labels(soft, s) for s in range(5)]) for soft in (False, True)}
    print(f"\nNDCG at 10: hard {found[False]:.3f}, soft beside {found[True]:.3f}")
    assert found[True] >= found[False] + 0.02
