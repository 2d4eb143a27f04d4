"""Closed forms of few trials in worlds with nuisances: share of the noiseless responses' variance that is explained.

    python tests/benchmarks/bench_worlds.py [--voxels 200] [--draws 3]

Voxels come from one prior that the closed forms know; what spoils their supports they do not know.
"""

import argparse

import numpy as np

from neuroenc import stats
from neuroenc.data.simulate import Nuisances
from neuroenc.encoders import RidgeEncoder
from neuroenc.encoders.incontext import EmpiricalBayesRidge, SyntheticEpisodes, WeightPrior

WORLDS = {
    "clean": Nuisances(),
    "outlying trials": Nuisances(outlying_trials=0.15),
    "outlying responses": Nuisances(outlying_responses=0.15),
    "noise levels by trial": Nuisances(noise_spread=0.8),
    "heavy tails": Nuisances(tails=2.5),
    "drifting gain": Nuisances(gain_drift=1.0),
    "turning tuning": Nuisances(turning=0.5),
    "saturation": Nuisances(saturation=0.5),
    "suppression": Nuisances(suppression=0.6),
    "several": Nuisances(outlying_trials=0.1, outlying_responses=0.05, gain_drift=0.7, saturation=0.6, suppression=0.4),
}
SIZES, FEATURES = (20, 50, 100), 64


def methods(prior):
    """Name and encoder: ridge with one penalty, then empirical Bayes with each kind of noise."""
    yield "ridge", RidgeEncoder(alpha_per_voxel=False, progress=False)
    for kind in ("none", "shared", "private", "both"):
        yield f"robust {kind}", EmpiricalBayesRidge(prior, robust=kind)


def world(nuisances, seed=0):
    """Episodes of voxels of a known prior on features of a falling spectrum."""
    rng = np.random.default_rng(seed)
    images = (rng.standard_normal((4000, FEATURES)) * np.arange(1, FEATURES + 1) ** -0.5).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((FEATURES, FEATURES)))[0]
    cov = turn * np.logspace(0, -2, FEATURES) @ turn.T
    prior = WeightPrior(np.zeros(FEATURES), (cov + cov.T) / 2)
    options = {"isotropic_share": 0.0, "ceiling": (0.1, 0.6), "offset": 0.0}
    return prior, SyntheticEpisodes(images, prior, **options, nuisances=nuisances)


def score(encoder, episode):
    """Mean over voxels of what is explained of noiseless queries."""
    X, Y, Q = (np.asarray(a, dtype=np.float64) for a in (episode.x, episode.y.T, episode.xq))
    truth = Q @ episode.weights[:, :-1].double().numpy().T + episode.weights[:, -1].double().numpy()
    return float(np.mean(stats.explained_variance(truth, encoder.fit(X, Y).predict(Q))))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voxels", type=int, default=200)
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    names = [name for name, _ in methods(WeightPrior.isotropic(2))]
    print("| world | trials | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 2) + "|")
    for title, nuisances in WORLDS.items():
        prior, source = world(nuisances)
        for size in SIZES:
            draws = [
                source.draw(np.random.default_rng([5, d]), options.voxels, size, 300) for d in range(options.draws)
            ]
            means = [np.mean([score(encoder, e) for e in draws]) for _, encoder in methods(prior)]
            print(f"| {title} | {size} | " + " | ".join(f"{m:.3f}" for m in means) + " |", flush=True)


if __name__ == "__main__":
    main()
