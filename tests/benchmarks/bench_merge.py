"""A new subject by merging fine-tuned networks, beside training, fine-tuning, ridge and empirical Bayes.

    python tests/benchmarks/bench_merge.py planted
    python tests/benchmarks/bench_merge.py v4 --mirror DATA
    python tests/benchmarks/bench_merge.py incontext --mirror DATA
    python tests/benchmarks/bench_merge.py simulated

``planted``: six networks fine-tuned from one base; the new one is another mix of two of them in every layer. ``v4``: a
small trunk on EfficientNet-Lite0's block8, trained on three sessions of one animal and fine-tuned on each; a session of
another animal is new. Ridge reads the trunk's maps for the new animal. ``incontext``: small anchored in-context models,
trained on all sessions of one animal and fine-tuned on each; sessions of the other animal are new, and both animals are
left out in turn. ``simulated``: the same of subjects of the simulated cortex, whose likeness is that of people.
"""

from __future__ import annotations

import argparse
import copy

import numpy as np

SIZES, DRAWS = (20, 50, 100), 3
OLD, NEW = ("201025", "210224", "210322"), "190928"
WAYS = ("blocks", "model", "position", "soup")


def told(table: dict[str, list[float]]) -> str:
    """Mean and standard error over draws."""
    parts = [f"{k} {np.mean(v):.3f} ± {np.std(v, ddof=1) / len(v) ** 0.5:.3f}" for k, v in table.items()]
    return "; ".join(parts)


def planted() -> None:
    """R2 on 500 new inputs, without noise."""
    import torch
    from torch import nn

    from neuroenc.encoders import RidgeEncoder
    from neuroenc.encoders.merge import learn_merge, merge_models

    def network(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 24))

    def trained(start, x, y):
        model = copy.deepcopy(start)
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(300):
            optimiser.zero_grad()
            (model(x) - y).square().mean().backward()
            optimiser.step()
        return model

    base, tuned = network(0), {}
    for k in range(6):
        tuned[f"s{k}"] = copy.deepcopy(base)
        torch.manual_seed(10 + k)
        with torch.no_grad():
            for p in tuned[f"s{k}"].parameters():
                p.add_(0.7 * p.std() * torch.randn_like(p) / (1 if p.ndim > 1 else 2))
    import xarray as xr

    mix = xr.DataArray(
        np.zeros((6, 3)), dims=("model", "block"), coords={"model": list(tuned), "block": ["0", "2", "4"]}
    )
    mix.loc["s1"], mix.loc["s4"] = [1.0, 0.0, 0.6], [0.0, 1.0, 0.4]
    truth = merge_models(base, tuned, mix)
    torch.manual_seed(99)
    seen = torch.randn(500, 12)
    target = truth(seen).detach().numpy()

    def r2(found):
        return float(1 - ((found - target) ** 2).sum() / ((target - target.mean(0)) ** 2).sum())

    for n in SIZES:
        table: dict[str, list[float]] = {}
        for draw in range(DRAWS + 1):
            torch.manual_seed(draw)
            x = torch.randn(n, 12)
            y = truth(x).detach()
            y = y + 0.6 * y.std() * torch.randn_like(y)
            models = {way: learn_merge(base, tuned, _loss(x, y), way=way).model for way in WAYS}
            models |= {"base": base, "fine-tuned": trained(base, x, y), "from nothing": trained(network(77), x, y)}
            for name, model in models.items():
                table.setdefault(name, []).append(r2(model(seen).detach().numpy()))
            table.setdefault("ridge", []).append(r2(RidgeEncoder().fit(x.numpy(), y.numpy()).predict(seen.numpy())))
        print(f"{n} trials: {told(table)}", flush=True)


def _loss(x, y):
    return lambda model, step: (model(x) - y).square().mean() / y.var()


def v4(mirror: str) -> None:
    """Median r over units of the new animal's session, 300 pictures kept apart."""
    import torch
    import xarray as xr
    from torch import nn

    from neuroenc import data, stats
    from neuroenc.embedding import ImageEmbedder
    from neuroenc.encoders import ReadoutEncoder, RidgeEncoder
    from neuroenc.encoders.incontext import EmpiricalBayesRidge, WeightPrior
    from neuroenc.encoders.merge import merge_cores
    from neuroenc.study.stages.compare import scale_voxels

    how = {"layer": "block8", "preprocessing": {"size": 112}, "progress": False, "device": "cpu"}
    embedder = ImageEmbedder("efficientnet-lite0", **how)

    def session(name):
        found = data.load_dataset("v4-cowley2023", mirror=mirror, session=name, progress=False)
        Y = found.responses
        Y = scale_voxels(data.average_repeats(Y) if Y.dims[0] == "presentation" else Y)
        return data.match(embedder.embed(found.stimuli), Y).values.astype("float32"), Y.values.astype("float32")

    def trunk():
        torch.manual_seed(0)
        layers = nn.Conv2d(112, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4)
        return nn.Sequential(*layers)

    parts, (X_new, Y_new) = {name: session(name) for name in OLD}, session(NEW)
    X, units = np.concatenate([x for x, _ in parts.values()]), sum(y.shape[1] for _, y in parts.values())
    Y, row, column, owner = np.full((len(X), units), np.nan, "float32"), 0, 0, []
    for name, (x, y) in parts.items():
        Y[row : row + len(x), column : column + y.shape[1]] = y
        row, column, owner = row + len(x), column + y.shape[1], owner + [name] * y.shape[1]
    ids = [f"s{k}" for k in range(len(X))]
    maps = xr.DataArray(X, dims=("stimulus", "channel", "y", "x"), coords={"stimulus": ids})
    joint = xr.DataArray(Y, dims=("stimulus", "voxel"), coords={"stimulus": ids, "subject": ("voxel", owner)})
    joint = joint.assign_coords(voxel=np.arange(units))
    fit = {"solver": "gradient", "device": "cpu"}
    base = ReadoutEncoder("linear", core=trunk(), lr=2e-3, max_epochs=8, patience=3, **fit).fit(maps, joint)
    core = base.model_.core
    tuned = {
        name: ReadoutEncoder("linear", core=core, lr=1e-3, max_epochs=4, patience=2, **fit).fit(x, y)
        for name, (x, y) in parts.items()
    }
    print(f"base: validation r by epoch {[round(float(r), 3) for r in base.curves_.validation_r]}", flush=True)

    def read(network, x):
        mean_of, scale_of = (np.reshape(a, (-1, 1, 1)) for a in (base.map_mean_, base.map_scale_))
        scaled = torch.as_tensor((x - mean_of) / scale_of).float()
        with torch.no_grad():
            return network.eval()(scaled).flatten(1).numpy()

    cells = X[..., :6, :6].reshape(len(X), -1, 2, 3, 2, 3).mean((3, 5)).reshape(len(X), -1)
    mean, scale = cells.mean(0), cells.std(0) * cells.shape[1] ** 0.5

    def small(x):
        return (x[..., :6, :6].reshape(len(x), -1, 2, 3, 2, 3).mean((3, 5)).reshape(len(x), -1) - mean) / scale

    prior = WeightPrior.from_weights(
        np.concatenate([RidgeEncoder().fit(small(x), y).coef_ for x, y in parts.values()], axis=1)
    )
    order = np.random.default_rng(0).permutation(len(X_new))
    test, pool = order[:300], order[300:]

    def ridge(x, y, t):
        return RidgeEncoder(standardise=True, alpha_per_voxel=False, cv=4).fit(x, y).predict(t)

    for n in SIZES:
        table: dict[str, list[float]] = {}
        for draw in range(DRAWS):
            rows = np.random.default_rng([1, draw]).choice(pool, n, replace=False)
            x, y, t = X_new[rows], Y_new[rows], X_new[test]
            found = {"ridge on block8": ridge(small(x), y, small(t))}
            found["empirical Bayes on block8"] = EmpiricalBayesRidge(prior).fit(small(x), y).predict(small(t))
            found["base trunk"] = ridge(read(core, x), y, read(core, t))
            for way in ("blocks", "model", "soup"):
                merged = merge_cores(base, tuned, x, y, way=way, n_steps=60)
                found[f"merged, {way}"] = ridge(read(merged, x), y, read(merged, t))
            slow = {"lr": 1e-3, "max_epochs": 30, "patience": 4, "validation": 0.25, "batch_size": 16, **fit}
            for name, start in (("fine-tuned", core), ("from nothing", trunk())):
                found[name] = ReadoutEncoder("linear", core=start, **slow).fit(x, y).predict(t)
            for name, predicted in found.items():
                r = stats.score(Y_new[test], np.asarray(predicted), "r")
                table.setdefault(name, []).append(float(np.nanmedian(r)))
        print(f"{n} trials: {told(table)}", flush=True)


ANIMALS = {"WE": ("190923", "190925", "190927", "190928"), "PE": ("201025", "210224", "210322", "210325")}
SETTINGS = {"depth": 2, "dim": 64, "heads": 4, "hidden": 128}


def merged_models(known, new, prior_of, report, n_query=300, n_features=64) -> None:
    """Median r over voxels of each new subject on stimuli kept apart, by number of trials and way.

    ``known`` and ``new`` are (features, responses) by name; ``prior_of(known)`` gives a mixture and a prior.
    """
    import torch

    from neuroenc import stats
    from neuroenc.encoders import RidgeEncoder
    from neuroenc.encoders.incontext import EmpiricalBayesRidge, ResponseEpisodes, make_model, train_stage
    from neuroenc.encoders.merge import merge_incontext

    def taught(model, pairs, lr, steps, rows=None):
        support, query = ((20, 100), 50) if rows is None else ((rows // 2, 2 * rows // 3), rows - 2 * rows // 3)
        every = max(1, steps // 5)
        many = {"voxels": 32, "query": query, "support": support, "lr": lr, "warmup": 10}
        train_stage(
            model, ResponseEpisodes(pairs), "finetune", max_steps=steps, evaluate_every=every, device="cpu", **many
        )
        return model

    def asked(model, x, y, t):
        with torch.no_grad():
            found = model.eval()(torch.as_tensor(x), torch.as_tensor(y.T.copy()))
            return found.predict(torch.as_tensor(t)).numpy().T

    mixture, prior = prior_of(list(known.values()))
    base = taught(make_model("small", prior=mixture, **SETTINGS), list(known.values()), 1e-3, 300)
    tuned = {name: taught(copy.deepcopy(base), [pair], 3e-4, 100) for name, pair in known.items()}
    for number, (name, (X, Y)) in enumerate(new.items()):
        order = np.random.default_rng([0, number]).permutation(len(X))
        test, pool = order[:n_query], order[n_query:]
        for n in SIZES:
            x, y, t = X[pool[:n]], Y[pool[:n]], X[test]
            ridge = RidgeEncoder(alpha_per_voxel=False, cv=4).fit(x, y)
            found = {"ridge, one penalty": ridge.predict(t)}
            found["empirical Bayes"] = EmpiricalBayesRidge(prior).fit(x, y).predict(t)
            found["in context, base"] = asked(base, x, y, t)
            found["base, network silent"] = asked(copy.deepcopy(base).silence(), x, y, t)
            ways = {way: {"way": way} for way in WAYS} | {"blocks, no labels": {"labels": False}}
            for way, options in ways.items():
                merged = merge_incontext(base, tuned, (x, y), n_steps=100, **options).model
                found[f"merged, {way}"] = asked(merged, x, y, t)
            own = {"rows": n}
            found["fine-tuned"] = asked(taught(copy.deepcopy(base), [(x, y)], 3e-4, 60, **own), x, y, t)
            fresh = make_model("small", n_features=n_features, **SETTINGS)
            found["from nothing"] = asked(taught(fresh, [(x, y)], 1e-3, 100, **own), x, y, t)
            for way, predicted in found.items():
                r = stats.score(Y[test], np.asarray(predicted), "r")
                report.setdefault(n, {}).setdefault(way, []).append(float(np.nanmedian(r)))
        print(name, {n: {k: round(v[-1], 3) for k, v in report[n].items()} for n in SIZES}, flush=True)


def told_with_intervals(report) -> None:
    """Mean over new subjects, and what each way has above the base, with its 95 % interval over them."""
    from scipy import stats as distributions

    for n, table in report.items():
        base = np.array(table["in context, base"])
        print(f"{n} trials, {len(base)} new subjects")
        for way, values in table.items():
            ahead = np.array(values) - base
            half = distributions.t.ppf(0.975, len(base) - 1) * ahead.std(ddof=1) / len(base) ** 0.5
            print(f"  {way}: {np.mean(values):.3f}, {ahead.mean():+.3f} ± {half:.3f}")


def priors(known):
    """A mixture and a prior over the weights of subjects."""
    from neuroenc.encoders.incontext import PriorMixture, WeightPrior

    mixture = PriorMixture.from_responses(known, n_clusters=4)
    return mixture, WeightPrior.from_responses([x for x, _ in known], [y for _, y in known])


def incontext(mirror: str, n_sessions: int = 4, n_features: int = 64) -> None:
    """V4: all sessions of one animal known, those of the other new, and the other way round."""
    import torch

    from neuroenc import data
    from neuroenc.embedding import ImageEmbedder
    from neuroenc.study.stages.compare import scale_voxels

    how = {"layer": "block8", "preprocessing": {"size": 112}, "progress": False, "device": "cpu"}
    embedder = ImageEmbedder("efficientnet-lite0", **how)

    def session(name):
        found = data.load_dataset("v4-cowley2023", mirror=mirror, session=name, progress=False)
        Y = found.responses
        Y = scale_voxels(data.average_repeats(Y) if Y.dims[0] == "presentation" else Y)
        maps = torch.as_tensor(data.match(embedder.embed(found.stimuli), Y).values)
        return torch.nn.functional.adaptive_avg_pool2d(maps, 4).flatten(1).numpy(), Y.values.astype("float32")

    parts = {name: session(name) for names in ANIMALS.values() for name in names}
    report: dict[int, dict[str, list[float]]] = {}
    for left_out, new in ANIMALS.items():
        old = [name for names in ANIMALS.values() for name in names if name not in new]
        pictures = np.concatenate([parts[name][0] for name in old])
        mean = pictures.mean(0)
        axes = np.linalg.svd(pictures - mean, full_matrices=False)[2][:n_features].T
        scale = ((pictures - mean) @ axes).std() * np.ones(1, "float32")
        pairs = {name: (((x - mean) @ axes / scale).astype("float32"), y) for name, (x, y) in parts.items()}
        print(f"{left_out} left out", flush=True)
        chosen = {name: pairs[name] for name in new[:n_sessions]}
        merged_models({name: pairs[name] for name in old}, chosen, priors, report, n_features=n_features)
    told_with_intervals(report)


def simulated(n_known: int = 4, n_new: int = 4, n_features: int = 64) -> None:
    """Subjects of the simulated cortex, as alike as people are: some known, others new."""
    from neuroenc.data.simulate import simulate_cortex, simulate_world
    from neuroenc.embedding import ImageEmbedder
    from neuroenc.study.stages.compare import scale_voxels

    scenes = simulate_world(1000, seed=90)
    Z = ImageEmbedder("world", normalise=True, progress=False, device="cpu").embed(scenes).values
    found = simulate_cortex(scenes, n_subjects=n_known + n_new, n_voxels=150, seed=9)
    mean = Z.mean(0)
    axes = np.linalg.svd(Z - mean, full_matrices=False)[2][:n_features].T
    X = (Z - mean) @ axes
    X = (X / X.std()).astype("float32")
    pairs = {}
    for number, one in enumerate(found):
        rows = scenes.index_of(one.responses["stimulus"].values.astype(str))
        pairs[f"subject {number + 1}"] = (X[rows], scale_voxels(one.responses).values.astype("float32"))
    names = list(pairs)
    report: dict[int, dict[str, list[float]]] = {}
    known, new = ({name: pairs[name] for name in part} for part in (names[:n_known], names[n_known:]))
    merged_models(known, new, priors, report, n_features=n_features)
    told_with_intervals(report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("planted", "v4", "incontext", "simulated"))
    parser.add_argument("--mirror", default="")
    parser.add_argument("--sessions", type=int, default=4, help="of each animal left out (incontext)")
    given = parser.parse_args()
    if given.what == "planted":
        planted()
    elif given.what == "v4":
        v4(given.mirror)
    elif given.what == "simulated":
        simulated()
    else:
        incontext(given.mirror, given.sessions)
