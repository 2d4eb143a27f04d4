"""In-context model beside its equations on torch's own layers, same weights, same process: time, memory, numbers.

    python tests/benchmarks/bench_incontext.py time [--supports 100 500] [--voxels 16 8] [--threads 1]
    python tests/benchmarks/bench_incontext.py memory [--support 500]
    python tests/benchmarks/bench_incontext.py anchor [--voxels 2000]
    python tests/benchmarks/bench_incontext.py default [--repeats 3]
    python tests/benchmarks/bench_incontext.py gpu

The peer gives every voxel its own copy of the images, goes through `torch.nn.MultiheadAttention`, materialises
attention weights and computes all tokens in every block, as released (128 voxels at once there). "bf16" is
autocast for both. Runs of the two alternate; medians are given.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import tempfile
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path


def load_published():
    path = Path(__file__).parents[1] / "encoders" / "incontext" / "published.py"
    spec = importlib.util.spec_from_file_location("published_form", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pair(depth, weigh=True, seed=0):
    """The peer and this package's model with the same random weights, through a checkpoint file."""
    import torch

    from neuroenc.encoders.incontext import load_braincorl

    published = load_published()
    torch.manual_seed(seed)
    peer = published.stirred(published.Published(512, 560, depth, weigh=weigh))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(peer.state_dict(), Path(folder) / "released.pth")
        return peer, load_braincorl(Path(folder) / "released.pth")


def data(support, voxels, seed=0):
    import numpy as np

    rng = np.random.default_rng(seed)
    x = rng.standard_normal((support, 512), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, rng.standard_normal((support, voxels), dtype=np.float32)


def run_peer(peer, x, Y, batch, half=False, device="cpu"):
    """Weights (voxel, feature + 1), as the released loop gives them."""
    import torch

    images, out = torch.as_tensor(x), []
    cast = torch.autocast(device, dtype=torch.bfloat16) if half else nullcontext()
    with torch.inference_mode(), cast:
        for first in range(0, Y.shape[1], batch):
            y = torch.as_tensor(Y[:, first : first + batch].T.copy(), device=device)
            copies = torch.stack([images] * len(y)).to(device)
            out.append(peer(copies, y).float().cpu())
    return torch.cat(out).numpy()


def run_ours(model, x, Y, half=False, device="cpu", max_bytes=2**28):
    import numpy as np
    import torch

    from neuroenc.encoders.incontext._condition import condition

    found = condition(model, x, Y, device=torch.device(device), half=half, max_bytes=max_bytes)
    return np.concatenate([found["coef"].T, found["intercept"][:, None]], axis=1)


class Peak:
    """Highest resident memory while the block runs, sampled every few milliseconds."""

    def __enter__(self):
        import ctypes

        import psutil

        gc.collect()
        with suppress(AttributeError, OSError):
            # What an earlier run freed goes back to the system, or it would hide what this one takes.
            ctypes.CDLL("libc.so.6").malloc_trim(0)
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


def seconds(task):
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    out = task()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin, out


def alternate(tasks, repeats):
    """Median seconds and last result of each task; tasks take turns. The first turn is not counted."""
    import numpy as np

    spent = {name: [] for name in tasks}
    results = {}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            took, results[name] = seconds(task)
            if turn or repeats == 0:
                spent[name].append(took)
    return {name: float(np.median(times)) for name, times in spent.items()}, spent, results


def matrix_flop(support, depth, e=512, d=560, hidden=2048, registers=4):
    """Multiply-adds x 2 of one voxel, all tokens in all blocks but the last, whose readout row alone is computed."""
    n = support + registers
    early = support * ((e + 1) * 2 * d + 2 * d * d + (e + 1) * d)
    block = n * (4 * d * d + 3 * d * hidden) + 2 * n * n * d
    last = n * 2 * d * d + 2 * d * d + 3 * d * hidden + 2 * n * d
    head = d * 2 * d + 2 * d * (e + 1) + d * (e + 1)
    return 2 * (early + (depth - 1) * block + last + head)


def product_limit(half, device="cpu", rows=None):
    """FLOP/s of one dense matrix product of the feed-forward layer's widths."""
    import torch

    kind = torch.bfloat16 if half else torch.float32
    rows = rows or (2048 if device == "cpu" else 65536)
    a, b = torch.randn(rows, 560, device=device).to(kind), torch.randn(4096, 560, device=device).to(kind)
    with torch.inference_mode():
        times = [seconds(lambda: torch.nn.functional.linear(a, b))[0] for _ in range(8)]
    return 2 * rows * 560 * 4096 / statistics.median(times[2:])


def report_time(options):
    import numpy as np

    peer, model = pair(options.depth, not options.fused)
    print(
        "| support | precision | peer voxels/s | neuroenc voxels/s | ratio | GFLOP/s of neuroenc | of a product | "
        "max difference, of the largest weight |\n|---|---|---|---|---|---|---|---|"
    )
    for support, voxels in zip(options.supports, options.voxels):
        x, Y = data(support, voxels)
        exact = run_ours(model, x, Y)
        for half in (kind == "bf16" for kind in options.precisions):
            tasks = {
                "peer": lambda x=x, Y=Y, half=half: run_peer(peer, x, Y, options.batch, half),
                "ours": lambda x=x, Y=Y, half=half: run_ours(model, x, Y, half),
            }
            median, _, found = alternate(tasks, options.repeats)
            flop = voxels * matrix_flop(support, options.depth) / median["ours"]
            other = exact if half else found["peer"]
            off = [np.abs(found[k] - other).max() / np.abs(other).max() for k in ("ours", "peer")]
            print(
                f"| {support} | {'bf16' if half else 'float32'} | {voxels / median['peer']:.2f} | "
                f"{voxels / median['ours']:.2f} | {median['peer'] / median['ours']:.2f} | {flop / 1e9:.0f} | "
                f"{flop / product_limit(half):.2f} | {off[0]:.1e}" + (f" (peer {off[1]:.1e})" if half else "") + " |",
                flush=True,
            )


def report_memory(options):
    peer, model = pair(2)  # Without gradients, peaks do not depend on depth.
    one = options.support * 4 + 513 * 4
    print("| what | voxels | seconds a voxel | extra peak GB | beyond inputs and outputs |\n|---|---|---|---|---|")
    for half in (False, True):
        x, Y = data(options.support, 128)
        with Peak() as peak:
            took, _ = seconds(lambda: run_peer(peer, x, Y, 128, half))  # noqa: B023
        print(
            f"| peer, {'bf16' if half else 'float32'}, 128 at once | 128 | {took / 128:.3f} | "
            f"{peak.extra / 1e9:.2f} | {(peak.extra - 128 * one) / 1e9:.2f} |",
            flush=True,
        )
        for voxels in (64, 128, 256):
            x, Y = data(options.support, voxels)
            with Peak() as peak:
                took, _ = seconds(lambda: run_ours(model, x, Y, half))  # noqa: B023
            print(
                f"| neuroenc, {'bf16' if half else 'float32'} | {voxels} | {took / voxels:.3f} | "
                f"{peak.extra / 1e9:.2f} | {(peak.extra - voxels * one) / 1e9:.2f} |",
                flush=True,
            )
    print(f"100,000 voxels: responses and weights are {1e5 * one / 1e9:.2f} GB.")


def report_anchor(options):
    """Where the time of the small anchored model goes."""
    import torch

    from neuroenc.encoders.incontext import make_model

    torch.manual_seed(0)
    model = make_model("small", components=10).eval()
    x = torch.nn.functional.normalize(torch.randn(options.support, 128), dim=1)
    y = torch.randn(options.voxels, options.support)
    z = torch.randn(options.voxels, 128)
    tasks = {
        "model": model,
        "closed form": lambda x, y: model.anchor(z[: len(y)], x, y),
    }
    with torch.inference_mode():
        for size in (64, 256):
            found, _, _ = alternate(
                {name: lambda f=f, size=size: [f(x, part) for part in y.split(size)] for name, f in tasks.items()}, 3
            )
            print(
                f"blocks of {size}, support {options.support}, ms a voxel: "
                + ", ".join(f"{name} {1e3 * took / options.voxels:.2f}" for name, took in found.items())
            )
        with torch.profiler.profile() as profile:
            model(x, y[:256])
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


def report_default(options):
    """What ``InContextEncoder("world")`` and empirical Bayes take, up to 10,000 trials and 100,000 voxels."""
    import numpy as np

    from neuroenc.encoders.incontext import EmpiricalBayesRidge, InContextEncoder, WeightPrior, load_model

    width = load_model("world").config.n_features
    print("| trials | voxels | encoder | seconds | voxels/s | extra peak GB | of it responses and weights |")
    print("|---|---|---|---|---|---|---|")
    for trials, voxels in ((100, 2000), (500, 2000), (10_000, 2000), (500, 100_000)):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((trials, width), dtype=np.float32)
        X /= np.linalg.norm(X, axis=1, keepdims=True)
        weights = 2 * rng.standard_normal((width, voxels), dtype=np.float32)
        Y = X @ weights
        for start in range(0, voxels, 10_000):
            part = Y[:, start : start + 10_000]
            part += rng.standard_normal(part.shape, dtype=np.float32)
        size = (Y.nbytes + weights.nbytes) / 1e9
        encoders = {
            "in context": lambda: InContextEncoder("world"),
            "empirical Bayes": lambda: EmpiricalBayesRidge(WeightPrior.isotropic(width)),
            "empirical Bayes, robust": lambda: EmpiricalBayesRidge(WeightPrior.isotropic(width), robust="shared"),
        }
        for name, make in encoders.items():
            took = []
            with Peak() as peak:
                for _ in range(options.repeats):
                    spent, _ = seconds(lambda: make().fit(X, Y).coef_)  # noqa: B023
                    took.append(spent)
            took = statistics.median(took)
            print(
                f"| {trials} | {voxels} | {name} | {took:.2f} | {voxels / took:.0f} | {peak.extra / 1e9:.2f} "
                f"| {size:.2f} |",
                flush=True,
            )


def report_gpu(options):
    import numpy as np
    import torch

    if not torch.cuda.is_available():
        print("no GPU here: not run")
        return
    peer, model = pair(options.depth)
    peer, model = peer.cuda(), model.cuda()
    limit = product_limit(True, "cuda")
    print(f"a dense bf16 product: {limit / 1e12:.0f} TFLOP/s")
    for support in options.supports:
        x, Y = data(support, 2048)
        tasks = {
            "peer": lambda x=x, Y=Y: run_peer(peer, x, Y, 128, True, "cuda"),
            "ours": lambda x=x, Y=Y: run_ours(model, x, Y, True, "cuda", 2**33),
        }
        median, _, found = alternate(tasks, options.repeats)
        exact = run_ours(model, x, Y[:, :64], False, "cuda")
        flop = 2048 * matrix_flop(support, options.depth) / median["ours"]
        off = np.abs(found["ours"][:64] - exact).max() / np.abs(exact).max()
        print(
            f"support {support}: neuroenc {2048 / median['ours']:.0f} voxels/s, peer {2048 / median['peer']:.0f}, "
            f"ratio {median['peer'] / median['ours']:.2f}, share of the product's limit {flop / limit:.2f}, bf16 off "
            f"by {off:.1e} of the largest weight"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "memory", "anchor", "default", "gpu"])
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--supports", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--voxels", type=int, nargs="+", default=None, help="one number a support")
    parser.add_argument("--support", type=int, default=None, help="of memory (500) and anchor (100)")
    parser.add_argument("--batch", type=int, default=128, help="voxels that the peer takes at once")
    parser.add_argument("--fused", action="store_true", help="the peer does not materialise attention weights")
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    if options.what == "anchor":
        options.voxels, options.support = (options.voxels or [2000])[0], options.support or 100
    elif options.what == "memory":
        options.support = options.support or 500
    else:
        options.voxels = options.voxels or [32, 12]
    reports = {"time": report_time, "memory": report_memory, "anchor": report_anchor, "default": report_default}
    (reports | {"gpu": report_gpu})[options.what](options)


if __name__ == "__main__":
    main()
