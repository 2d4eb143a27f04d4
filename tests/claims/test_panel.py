"""Claims about panels (MMTEB; and what was found of it before: a panel is not better than a random one in general).

Fixed before the first run. Worlds of 60 tasks, each of one of 12 abilities, with noise, and 45 models, of which 25
choose the panel and 20 are held out; seeds 10 to 14 (0 to 3 had been looked at while the penalty was chosen).

1. Balanced abilities, noise of .15 s.d.: a panel that is told no factor keeps a task of each of the 12 abilities in at
   most 24 tasks, for every seed. Random panels of the same size keep at most 11 on average.
2. The same world: Spearman r with the ranking by all tasks, of models held out, is at least .02 above the mean of
   random panels, on average over seeds.
3. The same world and 15 tasks that are noise of 3 s.d. beside their ability: with the split-half filter none of them is
   kept, without it at least 12 of 15; and r of the panel with the ranking by the abilities themselves is at least .02
   higher with it, on average over seeds.
4. Equal noise, abilities that mostly are one: tasks are .7 (of variance) of one ability and .3 of twelve, with noise of
   .6 s.d. The panel is not said to be better than random ones for at least four of five seeds.
5. Abilities of unequal numbers of tasks (25, 10, 5, two of 3, seven of 2), noise of .15: the same.
6. Ordinary least squares (penalty 0), as published, in the world of 1: it keeps at least 20 tasks, because nothing is
   predicted where tasks are about as many as models.

Hard galleries: 5,000 candidates in 500 kinds of ten; 300 queries; 12 models each of which confuses kinds, and members
of a kind, by noises that are drawn independently. Retrievers: vectors of one more such model, and words of kinds and
members. Seed 20.

7. Spearman r of recall at 1 in galleries of 250 with that among all 5,000, over models, is at least .9 with hard
   negatives; with 250 drawn at random at least .2 less, and with the hard negatives of other queries at least .2 less.

The second half of 7 fails there: random galleries still order these models (.99), since a random 250 of 5,000 holds a
member of the query's kind for a third of the queries. So a second setting was added, before its first run: 20,000
candidates in 4,000 kinds of five, whose members differ by .3 of what kinds differ by, and noises from .1 to .6.

8. The same as 7 in that setting. Seed 21.

It fails there too (.90): random galleries are nearly solved by all (recall .87 to 1 where it is .38 to 1 among all
candidates), and still order most of these models. What holds is that hard galleries keep order and level (.998).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from neuroenc.retrieval import DenseIndex, Galleries, LexicalIndex, hard_gallery
from neuroenc.stats import select_panel

pytestmark = pytest.mark.slow

SEEDS = range(10, 15)
HELD_OUT = [f"m{n}" for n in range(25, 45)]


def world(seed, sizes=(5,) * 12, noise=0.15, common=0.0, n_noisy=0):
    """Abilities of each task (model, task), what each task is of, and two halves of its scores."""
    rng = np.random.default_rng(seed)
    ability = np.sqrt(common) * rng.standard_normal((45, 1)) + np.sqrt(1 - common) * rng.standard_normal((45, 12))
    of = np.concatenate([np.repeat(np.arange(12), sizes), np.arange(n_noisy) % 12])
    sd = np.repeat([noise, 3.0], [sum(sizes), n_noisy]) * np.sqrt(2)
    names = [f"m{n}" for n in range(45)], [f"t{n}" for n in range(len(of))]
    halves = [pd.DataFrame(ability[:, of] + sd * rng.standard_normal((45, len(of))), *names) for _ in range(2)]
    return ability[:, of], of, halves


def chosen(halves, filtered=False, **how):
    return select_panel(sum(halves) / 2, reliability=halves if filtered else None, held_out=HELD_OUT, **how)


def abilities(found, of):
    return len({of[int(t[1:])] for t in found.tasks})


def test_every_ability_is_kept_and_held_out_models_are_ranked_better_than_at_random():
    gain = []
    for seed in SEEDS:
        _, of, halves = world(seed)
        found = chosen(halves, filtered=True)
        rng = np.random.default_rng(seed)
        at_random = [len(set(of[rng.choice(60, len(found.tasks), replace=False)])) for _ in range(200)]
        print(f"\nseed {seed}: abilities {abilities(found, of)}, at random {np.mean(at_random):.1f}; {found.statement}")
        assert abilities(found, of) == 12
        assert len(found.tasks) <= 24
        assert np.mean(at_random) <= 11
        gain.append(found.agreement - found.random.mean())
    print(f"gain over random panels {np.mean(gain):.3f}")
    assert np.mean(gain) >= 0.02


def test_least_squares_stops_where_tasks_are_as_many_as_models():
    for seed in SEEDS:
        found = chosen(world(seed)[2], penalty=0.0)
        print(f"\nseed {seed}: {len(found.tasks)} tasks")
        assert len(found.tasks) >= 20


def test_reliability_filter_matters():
    gain = []
    for seed in SEEDS:
        ability, _, halves = world(seed, n_noisy=15)
        truth = pd.DataFrame(ability[25:, :60]).rank().mean(axis=1)
        r, noisy = [], []
        for filtered in (True, False):
            found = chosen(halves, filtered)
            rows = (sum(halves) / 2).loc[HELD_OUT, found.tasks]
            r.append(spearmanr(truth, rows.rank().mean(axis=1))[0])
            noisy.append(sum(int(t[1:]) >= 60 for t in found.tasks))
        print(f"\nseed {seed}: noisy tasks kept {noisy}, r with the truth {np.round(r, 3)}")
        assert noisy[0] == 0
        assert noisy[1] >= 12
        gain.append(r[0] - r[1])
    assert np.mean(gain) >= 0.02


@pytest.mark.parametrize(
    "how",
    [{"common": 0.7, "noise": 0.6}, {"sizes": (25, 10, 5, 3, 3, 2, 2, 2, 2, 2, 2, 2)}],
    ids=["equal noise", "unequal abilities"],
)
def test_no_advantage_is_said_where_there_is_none(how):
    said = []
    for seed in SEEDS:
        found = chosen(world(seed, **how)[2])
        print(f"\nseed {seed}: {found.statement}")
        said.append("; better than random panels" not in found.statement)
    assert sum(said) >= 4


def recalls(seed, n_kinds, n_members, weight, noises):
    """Spearman r of recall at 1 in each sort of gallery with that among all candidates."""
    pytest.importorskip("bm25s")
    rng = np.random.default_rng(seed)
    kind = np.repeat(np.arange(n_kinds), n_members)
    n = len(kind)
    parts = rng.standard_normal((n_kinds, 16))[kind], rng.standard_normal((n, 16))
    asked = rng.choice(n, 300, replace=False)
    ids = np.array([f"c{k}" for k in range(n)])

    def model(coarse, fine):
        """Vectors of queries and candidates of a model."""
        noisy = [p + s * rng.standard_normal(p.shape) for p, s in zip(parts, (coarse, fine))]
        again = [p[asked] + s * rng.standard_normal((300, 16)) for p, s in zip(parts, (coarse, fine))]
        return (np.concatenate([w * x for w, x in zip((1.0, weight), side)], axis=1) for side in (again, noisy))

    def similarity(queries, candidates):
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, candidates)]
        return unit[0] @ unit[1].T

    queries, candidates = model(0.5, 0.5)
    texts = [f"kind{k} member{m % n_members}" for m, k in enumerate(kind)]
    indexes = [DenseIndex(candidates, ids=ids), LexicalIndex(texts, ids)]
    hard = hard_gallery(indexes, [queries, [texts[m] for m in asked]], [[i] for i in ids[asked]], size=250)
    other = np.roll(hard.ids, 1, axis=0)
    other[:, 0] = ids[asked]
    drawn = np.stack([[i, *rng.choice(np.delete(ids, m), 249, replace=False)] for m, i in zip(asked, ids[asked])])
    galleries = {"hard": hard.ids, "random": drawn, "of other queries": other}
    recall = {name: [] for name in ("all", *galleries)}
    for _ in range(12):
        scores = similarity(*model(*rng.uniform(*noises, 2)))
        recall["all"].append(float((scores.argmax(axis=1) == asked).mean()))
        for name, rows in galleries.items():
            recall[name].append(float(Galleries(rows, hard.relevant).recall(scores, ids).mean()))
    shown = {k: np.round(v, 2).tolist() for k, v in recall.items()}
    r = {name: float(spearmanr(recall["all"], recall[name])[0]) for name in galleries}
    print(f"\nrecall at 1: {shown}\nSpearman with all: {r}")
    return r


FIRST, SECOND = (20, 500, 10, 0.5, (0.2, 0.9)), (21, 4000, 5, 0.3, (0.1, 0.6))


@pytest.mark.parametrize("setting", [FIRST, SECOND], ids=["5,000", "20,000"])
def test_hard_galleries_keep_the_order_of_models(setting):
    assert recalls(*setting)["hard"] >= 0.9


def failing(setting, figures):
    return pytest.param(setting, marks=pytest.mark.xfail(strict=True, reason=f"Spearman with all: {figures}"))


@pytest.mark.parametrize(
    "setting",
    [
        failing(FIRST, "hard 1.000, random .991, of other queries .970"),
        failing(SECOND, "hard .998, random .902, of other queries .919"),
    ],
    ids=["5,000", "20,000"],
)
def test_random_galleries_do_not(setting):
    r = recalls(*setting)
    assert r["random"] <= r["hard"] - 0.2
    assert r["of other queries"] <= r["hard"] - 0.2
