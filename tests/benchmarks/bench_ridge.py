"""Ridge beside himalaya and scikit-learn, in one process: time, memory, agreement.

    python tests/benchmarks/bench_ridge.py primal        # n=8000, p=512, t=20000, 20 alphas, 5 folds
    python tests/benchmarks/bench_ridge.py dual          # n=1000, p=4096
    python tests/benchmarks/bench_ridge.py banded        # 2 bands, 50 candidates, t=5000
    python tests/benchmarks/bench_ridge.py mapped        # 1.4 GB of responses in a file, max_memory="100MB"
    python tests/benchmarks/bench_ridge.py primal --small --runs 3

The floor is the measured time of the matrix products that the Gram form needs, and nothing else, on the same
machine just before. Peers run on the same folds, penalties and centred float32 data without intercept; what
they choose and how well they fit is compared before the times are. Slow peers run once.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
from sklearn.model_selection import KFold
from threadpoolctl import threadpool_limits

from neuroenc.encoders import BandedRidgeEncoder, RidgeEncoder
from neuroenc.encoders.linear._banded import simplex_candidates

CV = KFold(5)
CORES = 2


def data(n: int, p: int, t: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Centred float32 features and responses of voxels with a range of noise."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p), dtype=np.float32)
    W = rng.standard_normal((p, t), dtype=np.float32) / np.float32(np.sqrt(p))
    Y = X @ W
    Y += np.linspace(0.5, 6, t, dtype=np.float32) * rng.standard_normal((n, t), dtype=np.float32)
    X -= X.mean(0)
    Y -= Y.mean(0)
    return X, Y


class Peak:
    """Highest resident memory over what it was at the start, sampled every 10 ms."""

    def __enter__(self) -> Peak:
        gc.collect()
        self._process = psutil.Process()
        self._start = self.highest = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.highest = max(self.highest, self._process.memory_info().rss)

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self.gigabytes = (self.highest - self._start) / 1e9


def measure(work: Callable[[], Any], runs: int) -> tuple[list[float], float, Any]:
    """Seconds of each run, peak extra memory of the first, and what the last returned."""
    seconds, peak, found = [], 0.0, None
    for run in range(runs):
        found = None
        with Peak() as memory:
            start = time.perf_counter()
            found = work()
            seconds.append(time.perf_counter() - start)
        peak = memory.gigabytes if run == 0 else peak
    return seconds, peak, found


def floor_primal(n: int, p: int, t: int, alphas: int, folds: int) -> float:
    """Seconds of the Gram form's products: 2npt + K 4p^2 t + K A 2p^2 t + 4p^2 t, on all cores."""
    rng = np.random.default_rng(0)
    block = 1024
    X, Y = rng.standard_normal((n, p), dtype=np.float32), rng.standard_normal((n, block), dtype=np.float32)
    G, Z = rng.standard_normal((p, p), dtype=np.float32), rng.standard_normal((p, block), dtype=np.float32)

    def products(_: int) -> None:
        np.matmul(X.T, Y)
        for _ in range(folds * (2 + alphas) + 2):
            np.matmul(G, Z)

    # In threads of one BLAS thread each, which is the faster way here.
    with threadpool_limits(1), ThreadPoolExecutor(CORES) as pool:
        list(pool.map(products, range(CORES)))
        start = time.perf_counter()
        list(pool.map(products, range(CORES)))
        seconds = time.perf_counter() - start
    return seconds * t / (CORES * block)


def floor_dual(n: int, p: int, t: int, alphas: int, folds: int) -> float:
    """Seconds of K (2 m^2 t + (A + 1) 2 q m t) + 4 n^2 t + 2 n p t, m and q training and test samples."""
    rng = np.random.default_rng(0)
    block, q = 1024, n // folds
    m = n - q
    U, B = rng.standard_normal((m, m), dtype=np.float32), rng.standard_normal((q, m), dtype=np.float32)
    Z, N = rng.standard_normal((m, block), dtype=np.float32), rng.standard_normal((n, n), dtype=np.float32)
    Y, X = rng.standard_normal((n, block), dtype=np.float32), rng.standard_normal((p, n), dtype=np.float32)

    def products(_: int) -> None:
        for _ in range(folds):
            np.matmul(U, Z)
            for _ in range(alphas + 1):
                np.matmul(B, Z)
        np.matmul(N, Y)
        np.matmul(N, Y)
        np.matmul(X, Y)

    with threadpool_limits(1), ThreadPoolExecutor(CORES) as pool:
        list(pool.map(products, range(CORES)))
        start = time.perf_counter()
        list(pool.map(products, range(CORES)))
        seconds = time.perf_counter() - start
    return seconds * t / (CORES * block)


def himalaya_ridge(
    backend: str, X: np.ndarray, Y: np.ndarray, alphas: np.ndarray, batch: int | None, kernel: bool
) -> Any:
    """A fitted himalaya estimator."""
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import KernelRidgeCV
    from himalaya.ridge import RidgeCV

    set_backend(backend)
    params = {"n_targets_batch": batch}
    if kernel:
        return KernelRidgeCV(alphas=alphas, cv=CV, solver_params=params, kernel="linear", warn=False).fit(X, Y)
    return RidgeCV(alphas=alphas, cv=CV, fit_intercept=False, solver_params={**params, "warn": False}).fit(X, Y)


def row(name: str, seconds: list[float], peak: float, floor: float, ours: float, extra: str = "") -> None:
    """One line of the table."""
    median = float(np.median(seconds))
    runs = ", ".join(f"{s:.1f}" for s in seconds)
    cells = [name, f"{median:.1f} ({runs})", f"{median / ours:.1f}", f"{median / floor:.2f}", f"{peak:.2f}", extra]
    print(f"| {' | '.join(cells)} |", flush=True)


def agreement(ours: Any, alpha: np.ndarray, coef: np.ndarray) -> str:
    """Share of voxels with the same penalty, and the largest difference of weights where they agree."""
    same = np.isclose(ours.alpha_, alpha, rtol=1e-4)
    difference = np.abs(ours.coef_[:, same] - coef[:, same]).max() if coef is not None and same.any() else np.nan
    return f"same alpha {same.mean():.4%}, max coef difference {difference:.1e}"


def ridge(case: str, small: bool, runs: int, peers: list[str]) -> None:
    """The table of one case."""
    n, p, t = {"primal": (8000, 512, 20000), "dual": (1000, 4096, 20000)}[case]
    t = t // 10 if small else t
    alphas = np.logspace(-1, 5, 20).astype(np.float32)
    X, Y = data(n, p, t)
    copy = Y.nbytes / 1e9
    floor = (floor_primal if case == "primal" else floor_dual)(n, p, t, len(alphas), 5)
    print(f"\n{case}: n={n} p={p} t={t}, float32, 20 alphas, 5 folds; Y is {copy:.2f} GB; floor {floor:.1f} s\n")
    print("| method | seconds, median (runs) | times neuroenc | times floor | extra GB | agreement |")
    print("|---|---|---|---|---|---|")
    RidgeEncoder(alphas, cv=CV, fit_intercept=False, scoring="neg_mse").fit(X[:500], Y[:500, :64])
    encoder = RidgeEncoder(alphas, cv=CV, fit_intercept=False, scoring="neg_mse")
    seconds, peak, ours = measure(lambda: encoder.fit(X, Y), runs)
    median = float(np.median(seconds))
    row("neuroenc RidgeEncoder", seconds, peak, floor, median)
    jobs: dict[str, Callable[[], Any]] = {}
    for backend in ("numpy", "torch"):
        for batch in (None, 2000):
            kinds = [False] if case == "primal" else [False, True]
            for kernel in kinds:
                label = f"himalaya {'KernelRidgeCV' if kernel else 'RidgeCV'} {backend}, n_targets_batch={batch}"
                jobs[label] = lambda b=backend, s=batch, k=kernel: himalaya_ridge(b, X, Y, alphas, s, k)
    from sklearn.linear_model import RidgeCV

    jobs["scikit-learn RidgeCV(cv=5), one alpha"] = lambda: RidgeCV(alphas, cv=CV, fit_intercept=False).fit(X, Y)
    for label, work in jobs.items():
        if peers and not any(word in label for word in peers):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found_seconds, found_peak, peer = measure(work, 1)
        note = ""
        if label.startswith("himalaya"):
            alpha = np.asarray(peer.best_alphas_)
            coef = None if "Kernel" in label else np.asarray(peer.coef_)
            note = agreement(ours, alpha, coef)
        row(label, found_seconds, found_peak, floor, median, note)
        del peer


def banded(small: bool, runs: int) -> None:
    """Random search over 50 weightings of two bands."""
    from himalaya.backend import set_backend
    from himalaya.ridge import GroupRidgeCV

    n, p, t, candidates = 3000, 512, 5000, 50
    t = t // 10 if small else t
    X, Y = data(n, p, t)
    bands = [X[:, : p // 2], X[:, p // 2 :]]
    alphas = np.logspace(-1, 5, 10).astype(np.float32)
    gammas = simplex_candidates(2, candidates + 2, seed=0)
    # himalaya cannot leave a band out altogether.
    gammas = gammas[(gammas > 0).all(1)][:candidates].astype(np.float32)
    print(f"\nbanded: n={n} p=2x{p // 2} t={t}, {len(gammas)} candidates, 10 alphas, 5 folds\n")
    print("| method | seconds, median (runs) | times neuroenc | extra GB | mean CV score |")
    print("|---|---|---|---|---|")
    ours_encoder = BandedRidgeEncoder(alphas, gammas=gammas, cv=CV, fit_intercept=False, scoring="neg_mse")
    seconds, peak, ours = measure(lambda: ours_encoder.fit(bands, Y), runs)
    median = float(np.median(seconds))

    def line(name: str, seconds: list[float], peak: float, score: float) -> None:
        took = float(np.median(seconds))
        print(f"| {name} | {took:.1f} | {took / median:.1f} | {peak:.2f} | {score:.6f} |", flush=True)

    line("neuroenc BandedRidgeEncoder", seconds, peak, float(ours.best_score_.mean()))
    for backend in ("numpy", "torch"):
        set_backend(backend)
        params = {"n_iter": gammas, "alphas": alphas, "progress_bar": False, "warn": False}
        peer = GroupRidgeCV(groups="input", cv=CV, solver_params=params)
        found, peak, fitted = measure(lambda peer=peer: peer.fit(bands, Y), 1)
        line(f"himalaya GroupRidgeCV {backend}", found, peak, float(np.asarray(fitted.cv_scores_).max(0).mean()))


def mapped(small: bool) -> None:
    """Resident memory beside a file of responses that is read through a memory map."""
    n, p, t = 6000, 32, 6_000 if small else 60_000
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, p), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/y.npy"
        Y = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, t))
        for start in range(0, n, 500):
            Y[start : start + 500] = rng.standard_normal((500, t), dtype=np.float32)
        del Y
        RidgeEncoder([1.0, 100.0], cv=CV).fit(X, X[:, :2])
        Y = np.load(path, mmap_mode="r")
        seconds, peak, _ = measure(lambda: RidgeEncoder([1.0, 100.0], cv=CV, max_memory="100MB").fit(X, Y), 1)
        print(f"file {Y.nbytes / 1e9:.2f} GB, peak beside it {peak:.3f} GB, {seconds[0]:.1f} s")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["primal", "dual", "banded", "mapped"])
    parser.add_argument("--small", action="store_true", help="a tenth of the voxels")
    parser.add_argument("--runs", type=int, default=3, help="runs of neuroenc; peers run once")
    parser.add_argument("--peers", nargs="*", default=[], help="only peers whose name holds one of these words")
    options = parser.parse_args()
    versions = {name: __import__(name).__version__ for name in ("numpy", "sklearn", "himalaya", "torch")}
    print(json.dumps({"cores": CORES, **versions}))
    if options.case == "mapped":
        mapped(options.small)
    elif options.case == "banded":
        banded(options.small, options.runs)
    else:
        ridge(options.case, options.small, options.runs, options.peers)


if __name__ == "__main__":
    main()
