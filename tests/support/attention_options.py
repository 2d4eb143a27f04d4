"""Small in-context models, each trained with one option of attention, on worlds made for that option.

What tests/claims/test_attention_options.py claims and tests/benchmarks/bench_attention_options.py prints: everything is
planted, so that accuracy is R2 of noiseless responses to new stimuli.
"""

from __future__ import annotations

import copy
from functools import cache
from itertools import product

import numpy as np
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV

from neuroenc.attention import (
    ChunkSelectPolicy,
    HeadTap,
    SinkCalibration,
    mask_curve,
    retrieval_score,
    select_calibration_heads,
)
from neuroenc.data.simulate import Nuisances
from neuroenc.encoders.incontext import (
    EmpiricalBayesRidge,
    Episode,
    InContextEncoder,
    MixedEpisodes,
    PriorMixture,
    SyntheticEpisodes,
    WeightPrior,
    make_model,
    region_embedding,
    train_stage,
    validation_episodes,
)

E = 8
SIZES = {"dim": 32, "depth": 2, "heads": 4, "hidden": 64}
RECIPE = {"voxels": 32, "query": 32, "lr": 2e-3, "warmup": 50, "evaluate_every": 200, "patience": 1, "factor": 0.3}


@cache
def images():
    """Stimuli (n, feature) whose variance falls."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal((4000, E)) * np.linspace(1.4, 0.4, E)).astype(np.float32)


def linear(**nuisances):
    """Voxels that are linear in the features, their supports spoilt."""
    return SyntheticEpisodes(images(), ceiling=(0.3, 0.8), nuisances=Nuisances(**nuisances))


class Exemplars:
    """Voxels that answer to stimuli near a few that they prefer."""

    n_features = E

    def __init__(self, n_preferred=3, width=1.2, noise=0.5):
        self.n_preferred, self.width, self.noise = n_preferred, width, noise

    def draw(self, rng, n_voxels, support, query):
        x = images()[rng.choice(len(images()), support + query, replace=False)]
        preferred = images()[rng.choice(len(images()), (n_voxels, self.n_preferred))]
        far = ((x[None, :, None] - preferred[:, None]) ** 2).sum(-1)
        clean = np.exp(-far / (2 * self.width**2)).max(axis=2)
        # In the units of all stimuli, not of those of the support.
        clean = (clean - clean.mean(1, keepdims=True)) / np.maximum(clean.std(1, keepdims=True), 1e-3)
        noisy = (clean + self.noise * rng.standard_normal(clean.shape)) / np.sqrt(1 + self.noise**2)
        clean = clean / np.sqrt(1 + self.noise**2)
        y = np.concatenate([noisy[:, :support], clean[:, support:]], axis=1).astype(np.float32)
        return _episode(x, y, support)


class Repeats:
    """Linear voxels; half of the stimuli are shown twice in a row, and the second time the response is suppressed."""

    n_features = E

    def __init__(self, suppression=0.9, noise=1.0):
        self.suppression, self.noise = suppression, noise

    def draw(self, rng, n_voxels, support, query):
        rows = rng.choice(len(images()), support + query, replace=False)
        again = np.zeros(support + query, dtype=bool)
        again[1:support] = rng.random(support - 1) < 0.5
        again[2:support] &= ~again[1 : support - 1]
        rows[np.flatnonzero(again)] = rows[np.flatnonzero(again) - 1]
        x, w = images()[rows], rng.standard_normal((n_voxels, E))
        clean = w @ x.T
        clean /= np.sqrt(np.einsum("ve,ef,vf->v", w, np.cov(images().T), w))[:, None]
        seen = clean * np.where(again, 1 - self.suppression, 1.0)
        scale = np.sqrt(1 + self.noise**2)
        noisy = (seen + self.noise * rng.standard_normal(seen.shape)) / scale
        y = np.concatenate([noisy[:, :support], clean[:, support:] / scale], axis=1).astype(np.float32)
        return _episode(x, y, support)


def _episode(x, y, support):
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    return Episode(x[:support], y[:, :support], x[support:], y[:, support:])


def trained(source, *, seed=0, steps=500, support=(8, 64), make=make_model, **changes):
    """A model of these options trained on a source; ``seed`` is that of weights and episodes."""
    prior = PriorMixture.build(images(), [np.eye(E)])
    model = make("small", prior=prior, seed=seed, **SIZES | {"form": "published"} | changes)
    held = validation_episodes(source, sorted({support[0], support[1]}), n_voxels=64, repeats=3, query=32, seed=99)
    train_stage(
        model, source, "extend", support=support, sizes="log", validation=held, seed=seed, max_steps=steps, **RECIPE
    )
    return model.eval()


def r2(predict, source, n, *, draws=6, voxels=100, seed=7):
    """Mean over draws of R2 over voxels and queries; ``predict(episode)`` gives (voxel, query)."""
    found = []
    for k in range(draws):
        episode = source.draw(np.random.default_rng([seed, n, k]), voxels, n, 100)
        clean = noiseless(episode)
        with torch.no_grad():
            miss = torch.as_tensor(predict(episode)) - clean
        found.append(float(1 - miss.square().sum() / (clean - clean.mean(1, keepdim=True)).square().sum()))
    return float(np.mean(found))


def noiseless(episode):
    """Responses (voxel, query) without noise."""
    if episode.weights is None:
        return episode.yq
    return episode.weights[:, :-1] @ episode.xq.T + episode.weights[:, -1:]


def by(model):
    """A model as a function of an episode."""
    return lambda e: model(e.x, e.y).predict(e.xq)


def fitted(make):
    """An estimator as a function of an episode."""
    return lambda e: torch.as_tensor(make().fit(e.x.numpy(), e.y.T.numpy()).predict(e.xq.numpy()).T)


SEEDS = (0, 1, 2)
LENGTHS = (8, 16, 32, 64)


def _means(rows):
    """Mean of figures over seeds."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


@cache
def plain(seed=0):
    """The published form with softmax and the whole support, on clean linear voxels."""
    return trained(linear(), seed=seed)


@cache
def normalisers():
    """R2 by normaliser, mean over seeds and over lengths seen in training."""
    rows = []
    for seed in SEEDS:
        models = {"softmax": plain(seed)}
        models["sigmoid"] = trained(linear(), seed=seed, normaliser={"class": "Sigmoid"}, length_scale="none")
        rows.append({k: np.mean([r2(by(m), linear(), n) for n in LENGTHS]) for k, m in models.items()})
    closed = fitted(lambda: EmpiricalBayesRidge())
    return _means(rows) | {"closed form": float(np.mean([r2(closed, linear(), n) for n in LENGTHS]))}


POSITIONS = {
    "none": None,
    "t5": {"class": "T5Bias", "heads": 4},
    "alibi": {"class": "ALiBi", "heads": 4},
    "rotary": {"class": "Rotary"},
    "sinusoidal": {"class": "AbsolutePosition", "dim": 32},
    "learned": {"class": "AbsolutePosition", "dim": 32, "kind": "learned", "length": 64},
}


@cache
def positions():
    """R2 at 64 trials by position where stimuli repeat and their second response is suppressed.

    Means over three seeds of "none" and "t5".
    """
    found = {}
    for name, position in POSITIONS.items():
        seeds = SEEDS if name in ("none", "t5") else SEEDS[:1]
        found[name] = np.mean([r2(by(trained(Repeats(), seed=s, position=position)), Repeats(), 64) for s in seeds])
    return found | {"closed form": r2(fitted(lambda: EmpiricalBayesRidge()), Repeats(), 64)}


TRAINED, LONG = 32, 512
LAYOUT = {"block_size": 8, "lead": 4}
LANDMARKS = {
    "normaliser": {"class": "GroupedSoftmax", **LAYOUT},
    "context": {"class": "LandmarkPolicy", **LAYOUT, "top_k": 4},
}


def averaged(model, size=TRAINED):
    """Mean of predictions from chunks of ``size`` trials."""

    def predict(e):
        parts = [slice(k, k + size) for k in range(0, len(e.x), size)]
        return torch.stack([model(e.x[p], e.y[:, p]).predict(e.xq) for p in parts]).mean(0)

    return predict


def chunked(model):
    """The same model, whose tokens see 64 tokens in the chunks that match."""
    other = copy.deepcopy(model)
    for block in other.stack.blocks:
        block.attention.context = ChunkSelectPolicy(8, 2 * TRAINED)
    return other


def kernel_ridge():
    """Kernel ridge, its width and penalty chosen by cross-validation for all voxels together."""
    grid = {"gamma": [0.03, 0.1, 0.3, 1.0], "alpha": [0.1, 0.3, 1.0, 3.0]}
    return GridSearchCV(KernelRidge(kernel="rbf"), grid, cv=4)


@cache
def contexts():
    """R2 of exemplar voxels (query form) and linear ones (published form), to 16 times the trained length.

    Means over seeds.
    """
    rows = {}
    for kind, source, form in (("exemplar", Exemplars(), "query"), ("linear", linear(), "published")):
        options = {"support": (8, TRAINED), "form": form}
        full = [trained(source, seed=seed, **options) for seed in SEEDS]
        grouped = [trained(source, seed=seed, **options, **LANDMARKS) for seed in SEEDS]
        predictors = {
            "full": [by(m) for m in full],
            "averaged": [averaged(m) for m in full],
            "chunks": [by(chunked(m)) for m in full],
            "landmarks": [by(m) for m in grouped],
            "closed form": [fitted(lambda: EmpiricalBayesRidge())],
            "kernel ridge": [fitted(kernel_ridge)],
        }
        for n in (TRAINED, LONG):
            rows[kind, n] = {
                name: float(np.mean([r2(p, source, n, draws=2, voxels=50) for p in several]))
                for name, several in predictors.items()
            }
    return rows


MEMORIES = {
    "titans": {"memory": "titans"},
    "gru": {"memory": "gru"},
    "attention": {"memory": "attention", "position": {"class": "ALiBi", "heads": 4}},
    "blocks, alibi": {"position": {"class": "ALiBi", "heads": 4}},
}
WORLDS = {"still": {}, "drift": {"turning": 2.0}, "drift and outliers": {"turning": 2.0, "outlying_trials": 0.15}}
SESSION = 128


def fixed_gates(seed):
    """Titans whose gates are learned numbers, the same at every trial."""

    def without(*args, **changes):
        model = make_model(*args, **changes)
        model.memory.gate_out.weight.requires_grad_(False)
        return model

    return trained(mixed_worlds(), seed=seed, support=(8, SESSION), memory="titans", make=without)


def mixed_worlds():
    """The three worlds of sessions, of which a model is not told."""
    return MixedEpisodes([linear(**w) for w in WORLDS.values()], [1.0] * len(WORLDS))


@cache
def memories():
    """R2 at the end of sessions of 128 trials by world: closed forms, and memories trained on all worlds together."""
    closed = {
        "closed form": lambda: EmpiricalBayesRidge(),
        "closed form, forgets": lambda: EmpiricalBayesRidge(forget="auto"),
        "closed form, robust": lambda: EmpiricalBayesRidge(robust="shared"),
        "closed form, robust, forgets": lambda: EmpiricalBayesRidge(robust="shared", forget="auto"),
    }
    found = {
        world: {name: r2(fitted(make), linear(**w), SESSION) for name, make in closed.items()}
        for world, w in WORLDS.items()
    }
    for name, changes in MEMORIES.items():
        models = [trained(mixed_worlds(), seed=s, support=(8, SESSION), **changes) for s in SEEDS]
        for world, w in WORLDS.items():
            found[world][name] = float(np.mean([r2(by(m), linear(**w), SESSION) for m in models]))
    models = [fixed_gates(s) for s in SEEDS]
    for world, w in WORLDS.items():
        found[world]["titans, fixed gates"] = float(np.mean([r2(by(m), linear(**w), SESSION) for m in models]))
    return found


# ---- heads


@cache
def sinks():
    """R2 at 64 trials, four of them with features five times as large and noise of 8 sd: heads calibrated or not.

    Heads are selected on supports with outliers that are not those of the test; as many random ones, means of 5 draws.
    """
    found = {}
    for seed in SEEDS:
        model = plain(seed)

        def spoilt(rng, n=64, model=model):
            e = linear().draw(rng, 100, n, 100)
            x, y = e.x.clone(), e.y.clone()
            x[:4] *= 5
            y[:, :4] += 8 * torch.as_tensor(rng.standard_normal((100, 4)), dtype=torch.float32)
            return e, x, y

        def miss(model, episodes):
            return np.mean([float((model(x, y).predict(e.xq) - noiseless(e)).square().mean()) for e, x, y in episodes])

        def level(model, test):
            whole = np.mean([float(noiseless(e).var()) for e, _, _ in test])
            return float(1 - miss(model, test) / whole)

        held, test = ([spoilt(np.random.default_rng([k, seed, part])) for k in range(4)] for part in (1, 2))
        clean = [(e, e.x, e.y) for e, _, _ in test]
        gain = select_calibration_heads(model, lambda m: miss(m, held), keep_first=4)  # noqa: B023
        chosen = [(int(a), int(b)) for a, b in np.argwhere(gain.values > 0)]
        heads = [(layer, head) for layer in range(2) for head in range(4)]
        rng = np.random.default_rng(seed)
        with torch.no_grad():
            row = {"clean": level(model, clean), "outliers": level(model, test)}
            row["chosen, clean"] = level(calmed(model, chosen), clean)
            row["chosen, outliers"] = level(calmed(model, chosen), test)
            draws = [[heads[k] for k in rng.choice(8, len(chosen), replace=False)] for _ in range(5)]
            row["random, outliers"] = float(np.mean([level(calmed(model, d), test) for d in draws]))
            row["without the outliers"] = level(model, [(e, x[4:], y[:, 4:]) for e, x, y in test])
        found[seed] = row | {"heads": len(chosen)}
    return _means(list(found.values()))


def calmed(model, heads):
    """The model, the sinks of these heads down-weighted."""
    other = copy.deepcopy(model)
    for layer, block in enumerate(other.stack.blocks):
        mine = [h for at, h in heads if at == layer]
        if mine:
            block.attention.normaliser = SinkCalibration(block.attention.normaliser, heads=mine, keep_first=4)
    return other


@cache
def retrieval():
    """Rise of the squared error of exemplar voxels at 32 trials without the two best retrieval heads of eight.

    A head retrieves where the support stimulus that a query attends to most is of the tenth nearest to the query.
    """
    found = {}
    for seed in SEEDS:
        model = trained(Exemplars(), seed=seed, support=(8, TRAINED), form="query")
        e = Exemplars().draw(np.random.default_rng([7, seed]), 60, TRAINED, 60)
        with HeadTap(model) as tap, torch.no_grad():
            tap.record(weights=slice(None))
            by(model)(e)
            # Blocks are called for the support, then for the queries.
            weights = [calls[-1] for calls in tap.recorded().weights]
        near = torch.cdist(e.xq, e.x)
        match = (near <= near.sort(1).values[:, 2:3]).expand(60, -1, -1)
        scores = retrieval_score(weights, match, offset=4)
        curve = mask_curve(model, lambda m: (by(m)(e) - e.yq).square().mean(), scores, [2], draws=20)  # noqa: B023
        clean = curve.attrs["clean"]
        found[seed] = {
            "top": float(curve["top"][0]) - clean,
            "random": float(curve["random"].mean()) - clean,
            "best score": float(scores.max()),
            "median score": float(scores.median()),
            "chance": scores.attrs["chance"],
        }
    return _means(list(found.values()))


@cache
def regions():
    """R2 at 0, 5 and 20 trials of new voxels of five regions: plain, with the region's task embedding, closed forms.

    Means over regions and training seeds.
    """
    found = {}
    for region, seed in product(range(5), SEEDS):
        model = plain(seed)
        rng = np.random.default_rng([region, 3])
        common = rng.standard_normal((E, 1))
        weights = common + 0.5 * rng.standard_normal((E, 160))
        weights /= np.sqrt(np.einsum("ev,ef,fv->v", weights, np.cov(images().T), weights))
        x = images()[rng.choice(len(images()), 520, replace=False)]
        clean = np.sqrt(0.5) * (x - images().mean(0)) @ weights
        y = (clean + np.sqrt(0.5) * rng.standard_normal(clean.shape)).astype(np.float32)
        task = region_embedding(model, x[:200], y[:200, :60], steps=100, seed=region)
        prior = WeightPrior.from_responses([x[:200]], [y[:200, :60]])
        for n in (0, 5, 20):
            rows = slice(200, 200 + n)

            def level(encoder, rows=rows, x=x, y=y, clean=clean):
                made = encoder.fit(x[rows], y[rows, 60:]).predict(x[300:])
                return float(1 - ((made - clean[300:, 60:]) ** 2).sum() / (clean[300:, 60:] ** 2).sum())

            methods = {
                "injected": InContextEncoder(model, task=task, device="cpu", response_scale="as-is"),
                "region's prior": EmpiricalBayesRidge(prior, intercept="prior"),
            }
            if n:
                methods |= {
                    "plain": InContextEncoder(model, device="cpu", response_scale="as-is"),
                    "closed form": EmpiricalBayesRidge(),
                }
            for name, encoder in methods.items():
                found.setdefault(n, {}).setdefault(name, []).append(level(encoder))
    return {n: {name: float(np.mean(values)) for name, values in row.items()} for n, row in found.items()}


@cache
def hints():
    """R2 at 32 trials (trained to 32) and at 256, without a hint and with each; means over seeds."""
    found = {}
    for hint in (None, "weights", "nearest", "statistics"):
        models = [trained(linear(), seed=seed, support=(8, TRAINED), hint=hint) for seed in SEEDS]
        found[str(hint)] = {n: float(np.mean([r2(by(m), linear(), n) for m in models])) for n in (TRAINED, 256)}
    return found
