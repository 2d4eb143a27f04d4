"""Seconds and peak memory of one training step of each readout; closed-form ridge beside Adam.

    python tests/benchmarks/bench_readouts.py step [--voxels 20000] [--shape 256 28 28] [--batch 16] [--device cpu]
    python tests/benchmarks/bench_readouts.py linear [--voxels 2000]
    python tests/benchmarks/bench_readouts.py few

Each case of ``step`` runs in a process of its own, so that peaks do not mix; the peak is what the step adds to the
process once model, gradients and inputs are there. "direct" warps every mask for every image at once, as published.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time

CASES = {
    "linear (4 x 4 cells)": ("linear", {"pool": 4}),
    "pooled": ("pooled", {}),
    "gaussian (sample)": ("gaussian", {}),
    "gaussian (integrate)": ("gaussian", {"read": "integrate"}),
    "factorized": ("factorized", {}),
    "attention (voxel)": ("attention", {}),
    "attention (50 regions)": ("attention", {"groups": 50}),
    "semantic": ("semantic", {"mode": "affine"}),
    "semantic, direct": ("semantic", {"mode": "affine"}),
}


def direct(readout, x):
    """The semantic readout with every mask warped for every image in one call of grid_sample."""
    import torch
    from torch.nn import functional

    from neuroenc.encoders.readout._geometry import warp_matrices

    net, (batch, channels, height, width) = readout.localization, x.shape
    u = net(x)
    on_masks = warp_matrices(net.masks.last(net.masks.hidden(u)), readout.mode).flatten(0, 1)
    on_maps = warp_matrices(net.maps.last(net.maps.hidden(u)), readout.feature_mode).flatten(0, 1)

    def warp(maps, theta):
        grid = functional.affine_grid(theta, (len(theta), 1, height, width), align_corners=False)
        return functional.grid_sample(maps, grid, align_corners=False)

    maps = warp(x.reshape(batch * channels, 1, height, width), on_maps).view(batch, channels, -1)
    masks = readout.masks()[None].expand(batch, -1, -1, -1).reshape(batch * readout.n_voxels, 1, height, width)
    masks = warp(masks, on_masks).view(batch, readout.n_voxels, -1)
    under = torch.bmm(maps, masks.transpose(1, 2))
    return torch.einsum("bcv,vc->bv", under, readout.feature) + readout.bias


class Peak:
    """Highest resident memory while the block runs, sampled every few milliseconds."""

    def __enter__(self):
        import psutil

        self._process, self._stop = psutil.Process(), threading.Event()
        self.start = self.high = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.005):
            self.high = max(self.high, self._process.memory_info().rss)

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    @property
    def extra(self):
        return self.high - self.start


def one(case, voxels, shape, batch, device, repeats):
    import torch

    from neuroenc.encoders.readout import make_readout

    torch.manual_seed(0)
    name, options = CASES[case]
    if "groups" in options:
        options = {"groups": [v % options["groups"] for v in range(voxels)]}
    readout = make_readout(name, shape, voxels, **options).to(device).train()
    x = torch.randn(batch, *shape, device=device)
    target = torch.randn(batch, voxels, device=device)
    for p in readout.parameters():
        p.grad = torch.zeros_like(p)
    seconds, value = [], 0.0
    with Peak() as peak:
        for _ in range(repeats):
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
                base = torch.cuda.memory_allocated()
                torch.cuda.synchronize()
            begin = time.perf_counter()
            y = direct(readout, x) if case.endswith("direct") else readout(x)
            loss = (y - target).square().mean(0).sum()
            loss.backward()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
            value = float(loss.detach())
    extra = peak.extra if device == "cpu" else torch.cuda.max_memory_allocated() - base
    print(
        json.dumps(
            {"seconds": statistics.median(seconds), "extra": extra, "loss": value, "parameters": readout.n_parameters}
        )
    )


def step(options):
    print("| readout | ms an image | minutes an epoch of 9000 images | extra peak GB | parameters (million) | loss |")
    print("|---|---|---|---|---|---|")
    for case in options.cases or CASES:
        command = [
            sys.executable,
            __file__,
            "one",
            "--case",
            case,
            "--voxels",
            str(options.voxels),
            "--batch",
            str(options.batch),
            "--device",
            options.device,
            "--repeats",
            str(options.repeats),
            "--shape",
            *map(str, options.shape),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {case} | failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]} |", flush=True)
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        each = found["seconds"] / options.batch
        print(
            f"| {case} | {1e3 * each:.0f} | {9000 * each / 60:.1f} | {found['extra'] / 1e9:.2f} | "
            f"{found['parameters'] / 1e6:.1f} | {found['loss']:.6g} |",
            flush=True,
        )


def linear(options):
    """Ridge by `RidgeEncoder` at one penalty and by Adam on the same loss, to within 1 % of its minimum.

    White features are the easiest case for gradients; those of networks have a spectrum that falls off ("power").
    """
    import numpy as np
    import torch

    from neuroenc.encoders import RidgeEncoder
    from neuroenc.encoders.readout import make_readout

    rng = np.random.default_rng(0)
    n, shape = 1000, (256, 4, 4)
    X = rng.standard_normal((n, 4096), dtype=np.float32)
    if options.spectrum == "power":
        X *= np.arange(1, 4097, dtype=np.float32) ** -0.5
        X = np.ascontiguousarray(X @ np.linalg.qr(rng.standard_normal((4096, 4096), dtype=np.float32))[0])
        X /= X.std()
    alpha = options.alpha
    W = rng.standard_normal((4096, options.voxels), dtype=np.float32) / 64
    Y = X @ W + rng.standard_normal((n, options.voxels), dtype=np.float32)
    Y -= Y.mean(0)
    begin = time.perf_counter()
    ridge = RidgeEncoder([alpha * n], n_jobs=options.threads).fit(X, Y)
    closed = time.perf_counter() - begin
    minimum = float(((X @ ridge.coef_ + ridge.intercept_ - Y) ** 2).mean(0).sum() + alpha * (ridge.coef_**2).sum())
    x, y = torch.as_tensor(X).view(n, *shape), torch.as_tensor(Y)
    best = None
    for lr in (1e-3, 3e-3):
        torch.manual_seed(0)
        readout = make_readout("linear", shape, options.voxels, alpha=alpha)
        optimiser = torch.optim.Adam(readout.parameters(), lr=lr)
        begin, steps, loss = time.perf_counter(), 0, float("inf")
        while loss > 1.01 * minimum and steps < options.steps:
            optimiser.zero_grad()
            value = (readout(x) - y).square().mean(0).sum() + readout.regulariser()
            value.backward()
            optimiser.step()
            loss, steps = float(value.detach()), steps + 1
        seconds = time.perf_counter() - begin
        print(f"Adam, lr {lr}: {steps} full-batch steps, {seconds:.1f} s, loss {loss / minimum:.4f} of the minimum")
        best = seconds if best is None else min(best, seconds)
    print(f"closed form: {closed:.2f} s, loss {minimum:.6g}; Adam takes {best / closed:.1f} times as long")


FEW = {
    "ridge": ("linear", [{}]),
    "low rank": ("lowrank", [{"rank": 10, "alpha": a} for a in (0.03, 0.1, 0.3)]),
    "codebook": ("codebook", [{"feature_l2": a} for a in (1e-3, 1e-2, 1e-1)]),
    "the same with relu": ("codebook", [{"code": "relu", "feature_l2": a} for a in (1e-3, 1e-2, 1e-1)]),
}


def few(options):
    """Bottlenecks at few stimuli: 60 voxels that answer to 10 of 128 dimensions, noise of twice the signal's s.d."""
    import numpy as np

    from neuroenc import stats
    from neuroenc.encoders import ReadoutEncoder

    print("| readout | 100 | 300 | 1000 |")
    print("|---|---|---|---|")
    for label, (name, candidates) in FEW.items():
        cells = []
        for n in (100, 300, 1000):
            found = []
            for seed in range(options.repeats):
                rng = np.random.default_rng(seed)
                X = rng.standard_normal((n + 500, 128)).astype(np.float32)
                signal = X[:, :10] @ rng.standard_normal((10, 60))
                signal = (signal - signal.mean(0)) / signal.std(0)
                Y = signal + 2 * rng.standard_normal(signal.shape)
                tried = []
                for given in candidates:
                    fit = {"lr": 0.01, "max_epochs": 60, "patience": 5, "seed": seed, "validation": 0.2}
                    encoder = ReadoutEncoder(name, readout_options=given, **fit).fit(X[:n], Y[:n])
                    best = float(encoder.curves_["validation_r"].max()) if len(encoder.curves_) else 0.0
                    tried.append((best, encoder))
                chosen = max(tried, key=lambda t: t[0])[1]
                found.append(np.median(stats.score(signal[n:], np.asarray(chosen.predict(X[n:])))))
            cells.append(
                f"{np.mean(found):.3f} ± {np.std(found, ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0:.3f}"
            )
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "one", "linear", "few"])
    parser.add_argument("--voxels", type=int, default=20000)
    parser.add_argument("--shape", type=int, nargs=3, default=[256, 28, 28])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--case", default="semantic")
    parser.add_argument("--cases", nargs="*")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--spectrum", choices=["white", "power"], default="power")
    parser.add_argument("--alpha", type=float, default=0.1, help="penalty over n of the linear case")
    options = parser.parse_args()
    if options.what == "one":
        one(options.case, options.voxels, options.shape, options.batch, options.device, options.repeats)
    else:
        {"step": step, "linear": linear, "few": few}[options.what](options)


if __name__ == "__main__":
    main()
