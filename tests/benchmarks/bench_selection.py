"""Chosen supports against random ones: explained variance after 10, 20 and 50 pictures, paired over new subjects.

    python tests/benchmarks/bench_selection.py v4 [--draws 10] [--out FOLDER]
    python tests/benchmarks/bench_selection.py people
    python tests/benchmarks/bench_selection.py world [--subjects 4] [--learned]

v4: macaque V4, an animal left out, both ways, all sessions. people: ridge weights of three people (bold5000-weights),
one left out; responses are those weights times simulated features whose spectrum falls, plus noise. world: new subjects
of simulated worlds. The encoder is empirical Bayes with the prior of the subjects that are not new, for every selector;
all selectors choose from the same half of the pool in each draw. --learned: those that take training. Intervals are
Student's over subjects (sessions of V4).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from neuroenc.encoders.incontext import (
    EmpiricalBayesRidge,
    LearnedSelector,
    PriorSelector,
    WeightPrior,
    support_curve,
)
from neuroenc.retrieval import CoverageSelector, DOptimalSelector, NearestSelector, PointerSelector

SIZES = (10, 20, 50)
POOL = 400
KNOWN = {}


def selectors(prior):
    """All at once: without responses."""
    return {
        "nearest": NearestSelector(),
        "coverage": CoverageSelector(),
        "d-optimal": DOptimalSelector(),
        "d-optimal, prior's covariance": DOptimalSelector(prior.cov),
        "v-optimal": DOptimalSelector(objective="accuracy"),
        "prior, information": PriorSelector(prior, objective="information"),
        "prior, accuracy": PriorSelector(prior, objective="accuracy"),
    }


def learned_selectors(prior, train):
    """Those that take training, beside the closed form that they learn: made once for each prior."""
    if id(prior) not in KNOWN:
        rng = np.random.default_rng(0)
        pools = [X[rng.choice(len(X), rng.integers(25, 51), replace=False)] for X, _ in train * (800 // len(train))]
        pointer = PointerSelector(epochs=20).fit(pools, PriorSelector(prior), k=12)
        KNOWN[id(prior)] = pointer, LearnedSelector(prior).fit(*zip(*train))
    pointer, learned = KNOWN[id(prior)]
    return {"prior, accuracy": PriorSelector(prior), "pointer": pointer, "learned": learned}


def v4_subjects(_):
    from neuroenc.study.incontext.tasks import v4_tasks

    for animal in ("PE", "WE"):
        tasks = v4_tasks(None, held_out_animal=animal, n_features=128, n_query=200)
        prior = WeightPrior.from_responses([s.X for s in tasks.train], [s.Y for s in tasks.train])
        for s in tasks.test:
            train = [(x.X.values, x.Y.values) for x in tasks.train]
            yield s.name, prior, train, s.X.values, s.Y.values, s.X_query.values, s.Y_query.values


def people_subjects(_, n_voxels=200, n_seeds=1):
    import os

    folder = Path(os.environ["NEUROENC_MIRROR"]) / "bold5000-weights"
    weights = [np.load(p)["coef"].astype(float) for p in sorted(folder.glob("sub-*.npz"))]
    for seed in range(n_seeds):
        people = [simulated(w, seed, n) for n, w in enumerate(weights)]
        for left, (X, Y) in enumerate(people):
            others = [people[n] for n in range(len(people)) if n != left]
            some = np.random.default_rng(seed).permutation(Y.shape[1])[:n_voxels]
            prior = WeightPrior.from_responses(
                [x for x, _ in others], [y for _, y in others], max_voxels=300, shrinkage=0.1, use_mean=False
            )
            yield f"CSI{left + 1}", prior, others, X[:POOL], Y[:POOL, some], X[-300:], Y[-300:, some]


def simulated(coef, seed, person, n=1000):
    """Features whose variances fall as 1/i, along directions that have nothing to do with weights; noisy responses."""
    basis = np.linalg.qr(np.random.default_rng([seed, 1]).standard_normal((512, 512)))[0]
    rng = np.random.default_rng([seed, 2, person])
    X = (rng.standard_normal((n, 512)) / np.sqrt(1 + np.arange(512))) @ basis.T
    signal = X @ coef
    signal = (signal - signal.mean(axis=0)) / signal.std(axis=0)
    ncsnr = np.exp(rng.normal(np.log(0.5), 0.5, coef.shape[1]))
    Y = signal + rng.standard_normal(signal.shape) / ncsnr
    return X, Y / Y.std(axis=0)


def world_subjects(n):
    from neuroenc.study.incontext.tasks import world_tasks

    for seed in range(200, 200 + n):
        tasks = world_tasks(seed, n_voxels=200, n_pool=POOL, n_train=400)
        prior = WeightPrior.from_responses([s.X for s in tasks.train], [s.Y for s in tasks.train], max_voxels=500)
        for s in tasks.test:
            yield (
                f"world {seed}",
                prior,
                [(x.X.values, x.Y.values) for x in tasks.train],
                s.X.values,
                s.Y.values,
                s.X_query.values,
                s.Y_query.values,
            )


SUBJECTS = {"v4": v4_subjects, "people": people_subjects, "world": world_subjects}


def scores(subjects, draws, learned=False):
    """Mean over voxels and draws by subject, selector and size, and how loud what was chosen is."""
    rows = []
    for name, prior, train, X, Y, X_query, Y_query in subjects:
        # Of wide spaces the trust in the prior costs most of the time.
        methods = {"empirical Bayes": EmpiricalBayesRidge(prior, adapt="none" if X.shape[1] > 256 else "population")}
        runs = [(learned_selectors(prior, train) if learned else selectors(prior), {"sizes": SIZES})]
        if not learned:
            loop = {f"prior, accuracy, by tens ({a})": PriorSelector(prior, adapt=a) for a in ("none", "both")}
            runs.append((loop, {"sizes": SIZES[1:], "select_batch": 10}))
        norms = ((X @ prior.cov) * X).sum(axis=1) ** 0.5
        for number, (chosen, options) in enumerate(runs):
            options |= {"select": chosen, "n_draws": draws, "progress": False}
            curve = support_curve(methods, X, Y, X_query, Y_query, **options)
            means = curve["explained_variance"].mean("voxel").isel(method=0)
            for select in means["select"].values.tolist()[number > 0 :]:
                loud = np.nan
                if select in chosen:
                    loud = norms[chosen[select].select(X, 20)].mean() / norms.mean()
                for size in means["size"].values.tolist():
                    score = float(means.sel(select=select, size=size).mean())
                    rows.append((name, select, size, score, loud))
        found = pd.DataFrame(rows, columns=["subject", "select", "size", "explained_variance", "loudness"])
        shown = found[found["subject"] == name].pivot_table("explained_variance", "select", "size", sort=False)
        print(f"{name}: pool {len(X)}, {Y.shape[1]} voxels, kurtosis of loudness {stats.kurtosis(norms):.1f}")
        print(shown.round(4).to_string(), flush=True)
    return found


def differences(found):
    """Against random supports, with intervals over subjects."""
    found = found.groupby(["subject", "select", "size"], sort=False).mean().reset_index()
    wide = found.pivot_table("explained_variance", ["select", "size"], "subject", sort=False)
    rows = []
    for select in dict.fromkeys(found["select"]):
        row = {"select": select, "loudness": found.loc[found["select"] == select, "loudness"].mean()}
        for size in found.loc[found["select"] == select, "size"].unique():
            gain = (wide.loc[(select, size)] - wide.loc[("random", size)]).to_numpy()
            half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
            row[str(size)] = f"{wide.loc[(select, size)].mean():.3f}"
            row[f"gain {size}"] = f"{gain.mean():+.4f} [{gain.mean() - half:+.4f}, {gain.mean() + half:+.4f}]"
        rows.append(row)
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=SUBJECTS)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--learned", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = scores(SUBJECTS[given.world](given.subjects), given.draws, given.learned)
    table = differences(found)
    print(table.round(2).to_markdown(index=False))
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        name = f"{given.world}-learned" if given.learned else given.world
        found.to_csv(given.out / f"{name}.csv", index=False)
        table.to_csv(given.out / f"{name}-table.csv", index=False)


if __name__ == "__main__":
    main()
