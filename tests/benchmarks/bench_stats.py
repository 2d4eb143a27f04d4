"""Statistics at the size of a study beside the peers that do the same thing.

    python tests/benchmarks/bench_stats.py permutation [--voxels 20000] [--stimuli 500] [--permutations 1000]
    python tests/benchmarks/bench_stats.py bootstrap
    python tests/benchmarks/bench_stats.py rsa [--conditions 92]
    python tests/benchmarks/bench_stats.py null [--voxels 20000] [--stimuli 27000] [--features 512]

Peers run on a few voxels (or models) between two halves of ours; their time is given per voxel and scaled.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import scipy.stats


def peak():
    """Largest resident memory so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def data(stimuli, voxels, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((stimuli, voxels), dtype=np.float32)
    return y, *(y + k * rng.standard_normal((stimuli, voxels), dtype=np.float32) for k in (15, 20))


def timed(call):
    start = time.perf_counter()
    out = call()
    return time.perf_counter() - start, out


def report(name, ours, voxels, peer, peer_voxels):
    each = peer / peer_voxels
    print(
        f"{name}: neuroenc {ours:.2f} s for {voxels} voxels; peer {each * 1e3:.2f} ms a voxel, "
        f"{each * voxels:.0f} s for all; ratio {each * voxels / ours:.0f}"
    )


def permutation(arguments):
    from neuroenc.stats import permutation_test

    y, yhat, _ = data(arguments.stimuli, arguments.voxels)
    before = peak()
    ours, found = timed(lambda: permutation_test(y, yhat, n_permutations=arguments.permutations, n_jobs=arguments.jobs))

    def peer():
        return [
            scipy.stats.permutation_test(
                (y[:, v].astype(float),),
                lambda a, axis=-1, v=v: (a * scipy.stats.zscore(yhat[:, v])).sum(axis=axis),
                permutation_type="pairings",
                vectorized=True,
                n_resamples=arguments.permutations,
                alternative="greater",
                rng=np.random.default_rng(0),
            ).pvalue
            for v in range(20)
        ]

    theirs, p = timed(peer)
    report("permutation", ours, arguments.voxels, theirs, 20)
    print(f"extra memory {peak() - before:.2f} GB; largest difference of p {np.abs(found.p[:20] - p).max():.3f}")


def bootstrap(arguments):
    from neuroenc.stats import Resampler

    y, yhat, _ = data(arguments.stimuli, arguments.voxels)
    before = peak()
    ours, found = timed(lambda: Resampler(arguments.permutations, n_jobs=arguments.jobs).score(y, yhat))

    def peer():
        return [
            scipy.stats.bootstrap(
                (y[:, v], yhat[:, v]),
                lambda a, b, axis=-1: scipy.stats.pearsonr(a, b, axis=axis).statistic,
                paired=True,
                vectorized=True,
                n_resamples=arguments.permutations,
                method="percentile",
            ).standard_error
            for v in range(20)
        ]

    theirs, error = timed(peer)
    report("bootstrap", ours, arguments.voxels, theirs, 20)
    ratio = found.standard_error[:20] / error
    print(f"extra memory {peak() - before:.2f} GB; standard errors agree within {np.abs(ratio - 1).max():.3f}")


def rsa(arguments):
    import rsatoolbox

    from neuroenc.stats import Resampler, compare_rdms, rdm

    rng = np.random.default_rng(0)
    x = rng.standard_normal((arguments.conditions, 2000))
    models = np.stack([rdm(x + k * rng.standard_normal(x.shape)) for k in range(1, 6)])
    subjects = np.stack([rdm(x + 3 * rng.standard_normal(x.shape)) for _ in range(8)])
    a, b = rsatoolbox.rdm.RDMs(models), rsatoolbox.rdm.RDMs(subjects)
    for ours_name, name in (("spearman", "spearman"), ("kendall_tau_a", "tau-a"), ("rho_a", "rho-a")):
        ours, found = timed(lambda m=ours_name: compare_rdms(models, subjects, m))
        theirs, expected = timed(lambda m=name: rsatoolbox.rdm.compare(a, b, method=m))
        print(
            f"compare {ours_name}: neuroenc {ours * 1e3:.1f} ms, rsatoolbox {theirs * 1e3:.1f} ms, "
            f"ratio {theirs / ours:.1f}, largest difference {np.abs(found - expected).max():.1e}"
        )
    fixed = [rsatoolbox.model.ModelFixed(str(k), m) for k, m in enumerate(models)]
    ours, _ = timed(lambda: Resampler(100, n_jobs=arguments.jobs).rdms(models, subjects, method="rho_a"))
    theirs, _ = timed(
        lambda: rsatoolbox.inference.eval_bootstrap(fixed, b, N=100, method="rho-a", boot_noise_ceil=False)
    )
    print(f"bootstrap of both, 100 resamples: neuroenc {ours:.2f} s, rsatoolbox {theirs:.2f} s")


def null(arguments):
    """P-values of five-fold cross-validated ridge; the peer refits scikit-learn's ridge to every permutation."""
    from sklearn.linear_model import Ridge

    from neuroenc.encoders import cross_validated_p

    rng = np.random.default_rng(0)
    n, p, v = arguments.stimuli, arguments.features, arguments.voxels
    X = rng.standard_normal((n, p), dtype=np.float32)
    y = rng.standard_normal((n, v), dtype=np.float32)
    y[:, : v // 2] += 0.02 * X[:, :1]
    grid = np.logspace(1, 6, 25)
    folds = [(np.flatnonzero(np.arange(n) % 5 != k), np.flatnonzero(np.arange(n) % 5 == k)) for k in range(5)]
    alphas = rng.choice(grid, (5, v))
    before, processor = peak(), time.process_time()
    ours, (found, facts) = timed(lambda: cross_validated_p(X, y, folds, alphas, scale=True, null=arguments.null))
    processor = time.process_time() - processor
    print(
        f"null: neuroenc {ours:.1f} s ({processor:.0f} processor seconds) for {v} voxels x {n} rows x {p} features, "
        f"{facts['n_permutations']} permutations ({facts['null']}, {facts['n_refitted']} voxels refitted); "
        f"extra memory {peak() - before:.2f} GB"
    )
    some = min(v, 200)

    def refit():
        for train, test in folds:
            Ridge(1e3).fit(X[train], y[train, :some]).predict(X[test])

    theirs, _ = timed(refit)
    print(
        f"scikit-learn, one penalty: {theirs:.2f} s for one permutation of {some} voxels; "
        f"{theirs * v / some * facts['n_permutations'] / 3600:.0f} hours for all"
    )
    passed = found <= 0.05
    print(f"p <= 0.05: {passed[v // 2 :].mean():.3f} of null voxels, {passed[: v // 2].mean():.3f} of planted ones")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["permutation", "bootstrap", "rsa", "null"])
    parser.add_argument("--voxels", type=int, default=20_000)
    parser.add_argument("--stimuli", type=int, help="default 500, 27,000 for null")
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--null", choices=["auto", "refit", "shared"], default="auto")
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--conditions", type=int, default=92)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    given.stimuli = given.stimuli or (27_000 if given.what == "null" else 500)
    {"permutation": permutation, "bootstrap": bootstrap, "rsa": rsa, "null": null}[given.what](given)
