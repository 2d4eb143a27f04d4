"""In-context networks and closed forms with few trials of new subjects, in worlds with nuisances and without.

    export PYTHONPATH=tests/support
    python tests/benchmarks/bench_worlds.py train --out worlds   # three forms, three seeds each
    python tests/benchmarks/bench_worlds.py table --out worlds   # resumes where it was stopped
    python tests/benchmarks/bench_worlds.py people --data bold5000-weights
    python tests/benchmarks/bench_worlds.py noise [--voxels 200] [--draws 3]

``table``: share of noiseless responses' variance to scenes after the support, mean over voxels and draws, and the half
width of its 95 % interval over three new subjects (Student's t), of networks the mean over training seeds. Networks saw
three other subjects under nuisances of unknown amounts; priors are of the same three.
``people``: ridge weights of people's voxels, one person left out; features are simulated, of variance 1/k along random
directions, noise 1.5 times the signal; mean r with noiseless responses, and its range over people.
``noise``: kinds of robust noise for voxels of one prior that is known; what spoils their supports is not.
"""

import argparse
import json
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from scipy import stats as distributions

from neuroenc import stats
from neuroenc._core.files import write_text
from neuroenc.encoders import RidgeEncoder
from neuroenc.encoders.incontext import (
    AnatomicalTransfer,
    EmpiricalBayesRidge,
    InContextEncoder,
    MixedEpisodes,
    PlacePrior,
    PriorMixture,
    SyntheticEpisodes,
    WeightPrior,
    load_model,
    make_model,
    save_model,
    train_stage,
    validation_episodes,
)
from worlds import WORLDS, SpoiltVoxels, people, spoilt

SIZES, DRAWS, SUBJECTS, SEED = (0, 20, 50, 100, 300, 1000), 2, 3, 500
POOL, QUERIES, VOXELS = 1000, 300, 400
#: Name, own share of a voxel's signal, whether voxels are exemplar ones, nuisances.
#: Without missing responses: each voxel would be a decomposition of its own, at every pass.
CASES = [(name, 0.6, False, nuisances) for name, nuisances in WORLDS.items() if not nuisances.missing]
CASES += [("exemplar voxels", 0.6, True, WORLDS["clean"])]
CASES += [(f"places, own share {own}", own, False, WORLDS["clean"]) for own in (0.3, 0.0)]
#: Where every training seed of a network is evaluated, elsewhere the first.
SEEDED = ("clean", "several", "exemplar voxels")
#: Steps of each form: about as long, a published one's step costs a third.
FORMS = {"published": 4500, "anchored": 1250, "query": 1000}
SIZE = {"dim": 64, "depth": 3, "heads": 4, "hidden": 128}
SOURCE = {"support": (12, 200), "sizes": "log", "voxels": 32, "query": 64}
RECIPE = {"lr": 1e-3, "warmup": 100, "evaluate_every": 250, "patience": 1, "factor": 0.3, "cooldown": 1}


@cache
def world(own, exemplars):
    """Features; three people to learn from with their supports of 1,000 trials; new people."""
    features, found = people(SEED, own, 2 * SUBJECTS, 2 * POOL + QUERIES, VOXELS, exemplars)
    known, rng = found[:SUBJECTS], np.random.default_rng([SEED, 1])
    none = np.array([], dtype=int)
    trials = [spoilt(features, p, np.arange(POOL), none, WORLDS["clean"], rng) for p in known]
    return features, known, trials, found[SUBJECTS:]


@cache
def learned(own, exemplars):
    """Prior, prior by place and encoders of the three people."""
    _, known, trials, _ = world(own, exemplars)
    X, Y = [t.X for t in trials], [t.Y for t in trials]
    places = zip(*(p.places for p in known))
    encoders = [RidgeEncoder(cv=5, progress=False).fit(t.X, t.Y) for t in trials]
    return WeightPrior.from_responses(X, Y), PlacePrior.from_responses(X, Y, *places), encoders


def methods(out, own, exemplars, person, networks):
    """Name and encoder of what is compared."""
    prior, by_place, encoders = learned(own, exemplars)
    known = world(own, exemplars)[1]
    where, side = person.places
    yield "ridge", RidgeEncoder(cv=5, alpha_per_voxel=False, progress=False)
    yield "empirical Bayes", EmpiricalBayesRidge(prior)
    yield "robust", EmpiricalBayesRidge(prior, robust="shared")
    yield "robust, gain", EmpiricalBayesRidge(prior, robust="shared", drift="gain")
    yield "by place", EmpiricalBayesRidge(by_place, positions=where, hemispheres=side)
    yield (
        "transfer",
        AnatomicalTransfer(
            encoders,
            [p.places[0] for p in known],
            where,
            hemispheres=[p.places[1] for p in known],
            target_hemisphere=side,
        ),
    )
    yield "shipped", InContextEncoder("world", response_scale="as-is")
    for name, model in networks.items():
        yield name, InContextEncoder(model, response_scale="as-is")
        if name == "anchored-0":
            # The closed form that all networks of that form correct: a mixture prior of the same three people.
            yield (
                "anchored, silent",
                InContextEncoder(load_model(out / "models" / name).silence(), response_scale="as-is"),
            )


def networks_of(out):
    return {p.name: load_model(p) for form in FORMS for p in sorted((out / "models").glob(f"{form}-*"))}


def train(out, form, seed, steps):
    """One network, on the three people's voxels under nuisances, exemplar ones and draws of their prior."""
    folder = out / "models" / f"{form}-{seed}"
    if (folder / "model.json").is_file():
        return
    features, known, trials, _ = world(0.6, False)
    odd, exemplars = world(0.6, True)[:2]
    mixture = PriorMixture.from_responses([(t.X, t.Y) for t in trials], n_clusters=8, seed=0)
    pool = features[:POOL]
    sources = [SpoiltVoxels(pool, at_first(known)), SpoiltVoxels(odd[:POOL], at_first(exemplars))]
    source = MixedEpisodes([*sources, SyntheticEpisodes(pool, mixture)], [0.7, 0.15, 0.15])
    held = validation_episodes(sources[0], (20, 50, 100), n_voxels=64, repeats=6, query=100, seed=77)
    model = make_model("small", prior=mixture, seed=seed, form=form, **SIZE)
    start = time.process_time()
    done = train_stage(
        model,
        source,
        "extend",
        validation=held,
        seed=seed,
        max_steps=steps,
        deployed=True,
        checkpoint=out / "training",
        **SOURCE,
        **RECIPE,
    )
    save_model(model, folder)
    print(
        f"{form} {seed}: {steps} steps, {(time.process_time() - start) / 60:.0f} min, held-out "
        f"{done.curves['validation_ev'].max():.4f}, best step {done.best_step}",
        flush=True,
    )


def at_first(known):
    """People as they see the first scenes."""
    return [replace(p, signal=p.signal[:POOL]) for p in known]


def measure(out, case, subject, draw):
    """Scores {method: {size: share}} and coverages of 90 % intervals; kept in a file of its own."""
    name, own, exemplars, nuisances = CASES[case]
    networks = networks_of(out)
    path = out / f"{name.replace(' ', '-').replace(',', '')}-{subject}-{draw}.json"
    found = json.loads(path.read_text()) if path.is_file() else {"share": {}, "held": {}}
    person = world(own, exemplars)[3][subject]
    features = world(own, exemplars)[0]
    order = np.random.default_rng([SEED, subject, draw]).permutation(POOL) + POOL
    for method, encoder in methods(out, own, exemplars, person, networks):
        for size in SIZES:
            known = found["share"].setdefault(method, {})
            # Networks on the first draw, up to 300 trials: attention to 1,000 takes half of the time.
            if method in networks and (draw or size > 300 or (name not in SEEDED and not method.endswith("-0"))):
                continue
            if str(size) in known or (not size and not getattr(encoder, "fits_without_trials", False)):
                continue
            rng = np.random.default_rng([SEED, subject, draw, size])
            t = spoilt(features, person, order[:size], np.arange(2 * POOL, 2 * POOL + QUERIES), nuisances, rng)
            predicted = encoder.fit(t.X, t.Y).predict(t.queries)
            known[str(size)] = float(np.mean(stats.explained_variance(t.truth, predicted)))
            if method in ("robust", "shipped") and size:
                mean, sd = encoder.predict(t.queries, return_std=True)
                inside = np.abs(t.measured - mean) <= distributions.norm.ppf(0.95) * sd
                found["held"].setdefault(method, {})[str(size)] = float(inside[np.isfinite(t.measured)].mean())
        write_text(path, json.dumps(found, indent=1))
    return name, found


def table(out, workers):
    jobs = [(c, s, d) for d in range(DRAWS) for c in range(len(CASES)) for s in range(SUBJECTS)]
    start = time.perf_counter()
    done = Parallel(n_jobs=workers)(delayed(measure)(out, *job) for job in jobs)
    print(f"{(time.perf_counter() - start) / 60:.0f} min\n")
    scores = {}
    for (case, subject, _), (_, found) in zip(jobs, done):
        for kind in ("share", "held"):
            for method, values in found[kind].items():
                form = next((f for f in FORMS if method.startswith(f"{f}-")), method)
                for size, value in values.items():
                    scores.setdefault((kind, case, int(size), form), {}).setdefault(subject, []).append(value)
    names = list(dict.fromkeys(key[3] for key in scores if key[0] == "share"))
    print("| world | trials | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 2) + "|")
    for case, (name, *_) in enumerate(CASES):
        for size in SIZES:
            cells = [interval(scores.get(("share", case, size, n))) for n in names]
            print(f"| {name} | {size} | " + " | ".join(cells) + " |")
    print("\n| 90 % intervals hold | trials | robust | shipped |\n|---|---|---|---|")
    for case, (name, *_) in enumerate(CASES):
        for size in SIZES[1:]:
            held = [np.mean(list(scores["held", case, size, n].values())) for n in ("robust", "shipped")]
            print(f"| {name} | {size} | " + " | ".join(f"{h:.3f}" for h in held) + " |")


def interval(subjects):
    """Mean over subjects, and half the width of its 95 % interval."""
    if not subjects:
        return ""
    means = np.array([np.mean(v) for v in subjects.values()])
    half = distributions.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    return f"{means.mean():.3f} ± {half:.3f}"


def people_left_out(folder, sizes=(0, 20, 50, 100, 300), n_voxels=300, n_draws=2):
    """By place, without places, and ridge, for each person the weights of the others known."""
    weights, places, sides = {}, {}, {}
    rng = np.random.default_rng(0)
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as held:
            chosen = np.sort(rng.choice(held["coef"].shape[1], n_voxels, replace=False))
            weights[path.stem] = held["coef"][:, chosen].astype(float)
            places[path.stem], sides[path.stem] = held["mni"][chosen].astype(float), held["hemi"][chosen]
    p = len(next(iter(weights.values())))
    turn = np.linalg.qr(rng.standard_normal((p, p)))[0] * np.arange(1, p + 1) ** -0.5
    pool, queries = (rng.standard_normal((n, p)) @ turn.T for n in (2000, 500))
    for person, known in weights.items():
        # Signals of unit variance over pictures.
        weights[person] = known / (pool @ known).std(axis=0)
    rows = {}
    for person, w in weights.items():
        others = [q for q in weights if q != person]
        X = [pool[:1000] for _ in others]
        Y = [x @ weights[q] + 1.5 * rng.standard_normal((1000, n_voxels)) for x, q in zip(X, others)]
        by_place = PlacePrior.from_responses(X, Y, [places[q] for q in others], [sides[q] for q in others])
        prior = WeightPrior.from_responses(X, Y)
        where = {"positions": places[person], "hemispheres": sides[person]}
        found = {
            "by place": EmpiricalBayesRidge(by_place, **where),
            "by place, robust": EmpiricalBayesRidge(by_place, robust="shared", **where),
            "empirical Bayes": EmpiricalBayesRidge(prior),
            "evidence, no prior": EmpiricalBayesRidge(),
            "one penalty": RidgeEncoder(cv=5, alpha_per_voxel=False, progress=False),
        }
        for size in sizes:
            for draw in range(n_draws):
                order = np.random.default_rng([7, draw]).permutation(1000)[:size] + 1000
                y = pool[order] @ w + 1.5 * np.random.default_rng([8, draw, size]).standard_normal((size, n_voxels))
                for name, encoder in found.items():
                    if size or getattr(encoder, "fits_without_trials", False):
                        predicted = encoder.fit(pool[order], y).predict(queries)
                        # Without a trial or a place all voxels have one mean: weights of 0.
                        r = np.nan_to_num(stats.pearson_r(queries @ w, predicted))
                        rows.setdefault((name, size), {}).setdefault(person, []).append(float(r.mean()))
    print("| method | " + " | ".join(map(str, sizes)) + " |\n" + "|---" * (len(sizes) + 1) + "|")
    for name in dict.fromkeys(key[0] for key in rows):
        cells = []
        for size in sizes:
            means = [np.mean(v) for v in rows.get((name, size), {}).values()]
            cells.append(f"{np.mean(means):.3f} ({min(means):.3f} to {max(means):.3f})" if means else "")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def noise(n_voxels, n_draws, n_features=64, sizes=(20, 50, 100)):
    """Kinds of robust noise, on features of a falling spectrum."""
    rng = np.random.default_rng(0)
    images = (rng.standard_normal((4000, n_features)) * np.arange(1, n_features + 1) ** -0.5).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((n_features, n_features)))[0]
    cov = turn * np.logspace(0, -2, n_features) @ turn.T
    prior = WeightPrior(np.zeros(n_features), (cov + cov.T) / 2)
    kinds = ("none", "shared", "private", "both")
    print("| world | trials | ridge | " + " | ".join(f"robust {k}" for k in kinds) + " |\n" + "|---" * 7 + "|")
    for title, nuisances in WORLDS.items():
        options = {"isotropic_share": 0.0, "ceiling": (0.1, 0.6), "offset": 0.0, "nuisances": nuisances}
        source = SyntheticEpisodes(images, prior, **options)
        for size in sizes:
            draws = [source.draw(np.random.default_rng([5, d]), n_voxels, size, 300) for d in range(n_draws)]
            encoders = [RidgeEncoder(alpha_per_voxel=False, progress=False)]
            encoders += [EmpiricalBayesRidge(prior, robust=kind) for kind in kinds]
            means = [np.mean([of_episode(encoder, e) for e in draws]) for encoder in encoders]
            print(f"| {title} | {size} | " + " | ".join(f"{m:.3f}" for m in means) + " |", flush=True)


def of_episode(encoder, episode):
    """Mean over voxels of what is explained of noiseless queries."""
    X, Y, Q = (np.asarray(a, dtype=np.float64) for a in (episode.x, episode.y.T, episode.xq))
    truth = Q @ episode.weights[:, :-1].double().numpy().T + episode.weights[:, -1].double().numpy()
    return float(np.mean(stats.explained_variance(truth, encoder.fit(X, Y).predict(Q))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table", "people", "noise"))
    parser.add_argument("--out", type=Path, default=Path("worlds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("bold5000-weights"))
    parser.add_argument("--voxels", type=int, default=200)
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    if options.what == "noise":
        noise(options.voxels, options.draws)
    elif options.what == "people":
        people_left_out(options.data)
    elif options.what == "train":
        jobs = [(form, seed, steps) for seed in options.seeds for form, steps in FORMS.items()]
        Parallel(n_jobs=options.workers)(delayed(train)(options.out, *job) for job in jobs)
    else:
        table(options.out, options.workers)


if __name__ == "__main__":
    import bench_worlds  # By name, so that other processes find what is cached here.

    bench_worlds.main()
