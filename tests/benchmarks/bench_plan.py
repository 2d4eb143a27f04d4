"""Planning a session: the closed loop, beside peers, and the whole command.

    python tests/benchmarks/bench_plan.py loop [--candidates 10000] [--voxels 20000] [--features 512] [--runs 20]
    python tests/benchmarks/bench_plan.py peers [--candidates 1000]
    python tests/benchmarks/bench_plan.py command [--candidates 10000]

loop: the next pictures after 50 whose responses are given, one prior covariance for all voxels. peers: the same
objective by its definition in float64 (the posterior covariance of every candidate's weights anew at each step), and
scikit-learn's KMeans, which plans from features alone; what each list is expected to give is judged by
ExpectedAccuracy. command: `neuroenc plan` on a file of features with a folder of pictures and the shipped prior, a new
process.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def case(n, p, v, seed=0):
    """Unit features with a mean and a falling spectrum, a prior along them, and responses to 50 of the pool."""
    from neuroenc.encoders.incontext import WeightPrior

    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, p + 1) ** -0.5
    pool = rng.standard_normal((n, p), dtype=np.float32) * spectrum.astype(np.float32) + 0.3
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    cov = np.diag(spectrum)
    around = pool - pool.mean(axis=0)
    cov /= np.einsum("np,pq,nq->n", around[:500], cov, around[:500]).mean()
    prior = WeightPrior(np.zeros(p), cov, hyper_mean=[-1.5, -0.3], hyper_cov=[[1.0, -0.1], [-0.1, 0.1]])
    rows = rng.permutation(n)[:50]
    weights = prior.sample(v, seed=1)[0]
    seen = np.full((n, v), np.nan, dtype=np.float32)
    seen[rows] = pool[rows] @ weights + 0.86 * rng.standard_normal((50, v))
    return prior, pool, seen, rows


def timed(work, runs):
    """Median, least and most of some runs; median of the processor's seconds, which do not count waiting for others."""
    taken, used = [], []
    for _ in range(runs):
        start, busy = time.perf_counter(), time.process_time()
        work()
        taken.append(time.perf_counter() - start)
        used.append(time.process_time() - busy)
    return f"{statistics.median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f}) | {statistics.median(used):.2f}"


def loop(args):
    import xarray as xr

    from neuroenc.encoders.incontext import PriorSelector

    prior, pool, seen, rows = case(args.candidates, args.features, args.voxels)
    ids = np.array([f"p{n:05d}" for n in range(len(pool))])
    features = xr.DataArray(pool, dims=("stimulus", "feature"), coords={"stimulus": ids})
    told = xr.DataArray(seen[rows], dims=("stimulus", "voxel"), coords={"stimulus": ids[rows]})
    selector = PriorSelector(prior)
    selector.select(features, 1, responses=told)
    print(f"{len(pool):,} candidates, {args.voxels:,} voxels, {args.features} features, 50 shown; {args.runs} runs")
    print("| next | objective | adapt | seconds, median (range) | processor seconds |\n|---|---|---|---|---|")
    cases = [(k, "accuracy", "both") for k in (1, 10, 50)]
    cases += [(10, "information", "both"), (10, "accuracy", "snr")]
    for k, objective, adapt in cases:
        selector = PriorSelector(prior, objective=objective, adapt=adapt)
        found = timed(lambda: selector.select(features, k, responses=told), args.runs)  # noqa: B023
        print(f"| {k} | {objective} | {adapt} | {found} |", flush=True)


def naive(prior, pool, k, nodes=5):
    """Greedy V-optimal design by its definition: float64, no updates."""
    from neuroenc.encoders.incontext._selection import prior_ratios

    X = pool.astype(np.float64) - pool.mean(axis=0)
    within, (ratios, shares) = X.T @ X / len(X), prior_ratios(prior, X, nodes)
    signal = np.trace(within @ prior.cov)
    chosen = []
    posterior = [np.array(prior.cov) for _ in ratios]
    offset = 1e3 * signal
    whole = np.zeros((X.shape[1] + 1,) * 2)
    whole[:-1, :-1], whole[-1, -1] = prior.cov, offset
    posterior = [whole.copy() for _ in ratios]
    Z = np.column_stack([X, np.ones(len(X))])
    aim = np.zeros_like(whole)
    aim[:-1, :-1] = within
    for _ in range(k):
        gain = np.zeros(len(X))
        for ratio, share, S in zip(ratios, shares, posterior):
            carried = Z @ S
            fall = np.einsum("np,pq,nq->n", carried, aim, carried, optimize=True)
            gain += share * fall / (1 / ratio + (carried * Z).sum(axis=1)) / (signal + 1 / ratio)
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        for n, (ratio, S) in enumerate(zip(ratios, posterior)):
            moved = S @ Z[chosen[-1]]
            posterior[n] = S - np.outer(moved, moved) / (1 / ratio + Z[chosen[-1]] @ moved)
    return np.array(chosen)


def peers(args):
    from sklearn.cluster import KMeans

    from neuroenc.encoders.incontext import ExpectedAccuracy, PriorSelector, random_lists
    from neuroenc.retrieval import CoverageSelector, DOptimalSelector

    n = min(args.candidates, 1000)
    prior, pool, _, _ = case(n, args.features, 10)
    expected = ExpectedAccuracy(prior, pool)

    def means():
        found = KMeans(50, n_init=1, random_state=0).fit(pool)
        return np.unique([int(np.argmin(((pool - c) ** 2).sum(axis=1))) for c in found.cluster_centers_])

    ways = {
        "neuroenc, PriorSelector": lambda: PriorSelector(prior).select(pool, 50),
        "numpy float64, by its definition": lambda: naive(prior, pool, 50),
        "neuroenc, DOptimalSelector (prior's covariance)": lambda: DOptimalSelector(prior.cov).select(pool, 50),
        "neuroenc, CoverageSelector": lambda: CoverageSelector().select(pool, 50),
        "scikit-learn KMeans, nearest to its centres": means,
    }
    print(f"50 of {n} candidates, {args.features} features, nothing shown yet")
    print("| method | seconds | same list | expected explained variance |\n|---|---|---|---|")
    first = None
    for name, way in ways.items():
        start = time.perf_counter()
        rows = way()
        taken = time.perf_counter() - start
        first = rows if first is None else first
        same = f"{np.mean([a == b for a, b in zip(rows, first)]):.0%}" if len(rows) == len(first) else ""
        told = float(expected.after(rows).explained_variance[-1])
        print(f"| {name} | {taken:.2f} | {same} | {told:.4f} |", flush=True)
    told = float(expected.after(random_lists(np.arange(n), 50, 10, 0)).explained_variance[-1])
    print(f"| random | | | {told:.4f} |")


def command(args):
    from PIL import Image

    from neuroenc import ImageEmbedder, data
    from neuroenc.data.simulate import simulate_world

    with tempfile.TemporaryDirectory() as folder:
        scenes = simulate_world(args.candidates, seed=70_000)
        (Path(folder) / "pictures").mkdir()
        for name, pixels in zip(scenes.ids, scenes.images):
            Image.fromarray(pixels).save(f"{folder}/pictures/{name}.png")
        known = ImageEmbedder("world", normalise=True, progress=False).embed(scenes.sel(scenes.ids[:300]))
        # The others' features are drawn as the first 300 are: what is measured is the command, not the embedding.
        rng = np.random.default_rng(0)
        values = rng.multivariate_normal(known.values.mean(axis=0), np.cov(known.values.T), size=len(scenes))
        values[:300] = known.values
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        made = {k: known.attrs[k] for k in ("backbone", "weights", "normalised")}
        pool = data.make_features(values.astype(np.float32), stimulus=scenes.ids, **made)
        data.save(pool, f"{folder}/pool.nc")
        line = ["plan", "pool.nc", "-k", "50", "--prior", "world", "--pictures", "pictures", "--quiet", *args.more]
        start = time.perf_counter()
        code = "from neuroenc.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *line], cwd=folder, check=True, capture_output=True, text=True
        )
        print(done.stdout)
        print(f"neuroenc {' '.join(line)}: {time.perf_counter() - start:.1f} s, {args.candidates:,} candidates")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("loop", "peers", "command"))
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--voxels", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--more", nargs="*", default=[])
    args = parser.parse_args()
    {"loop": loop, "peers": peers, "command": command}[args.what](args)


if __name__ == "__main__":
    main()
