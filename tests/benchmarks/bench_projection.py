"""Projection beside its own matrix products: time and memory at 20,000 voxels on millions of images.

    python tests/benchmarks/bench_projection.py [--images 100000] [--voxels 20000] [--features 512] [--runs 3]
        [--backends numpy torch] [--budget 1500MB] [--threads 1] [--folder /tmp]
    python tests/benchmarks/bench_projection.py precision
    PYTHONPATH=tests/support python tests/benchmarks/bench_projection.py geometry --mirror DATA

The bank is a float16 file, memory-mapped. The peer reads the same blocks, turns them into float32 (of unit length, as
the projection must) and does the two products of each tile, `weights @ rows.T` and `tile @ rows`, with the same
library, blocks and precision, and nothing else: no maxima, exponentials, sums, ids or hash. Its runs and those of the
projection alternate, piece of the bank by piece, so that what else the machine does hits both; ratios are of one pair.
Processor time (of all threads) is given too: it does not count the waiting for a core that others use.

Time grows with images in proportion; memory does not grow with them (measured, at two lengths).

``geometry``: voxels planted on real CLIP text vectors (see tests/support/concept_cone.py), projected at five
temperatures, with and without the bank's mean direction in the weights; and the cones of real and simulated CLIP.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

FULL = 2_000_000


def make_bank(path, n, d, seed=0):
    """Embeddings with a mean and clusters, as CLIP's have, norms around 10."""
    import numpy as np

    rng = np.random.default_rng(seed)
    centres = 0.8 * rng.standard_normal((64, d), dtype=np.float32) + 1.5 * rng.standard_normal(d, dtype=np.float32)
    bank = np.lib.format.open_memmap(path, "w+", np.float16, (n, d))
    for a in range(0, n, 20_000):
        m = min(20_000, n - a)
        rows = centres[rng.integers(0, 64, m)] + rng.standard_normal((m, d), dtype=np.float32)
        bank[a : a + m] = rows * (10 / np.sqrt(d) / 2)
    bank.flush()


def products(unit, path, start, stop, rows, block, backend, dtype):
    """The two matrix products of every tile."""
    import numpy as np

    from neuroenc.retrieval import as_bank

    d = unit.shape[1]
    scaled = (unit * 150).astype(dtype)
    if backend == "torch":
        import torch

        scaled = torch.from_numpy(scaled)
    for chunk in as_bank(path).part(start, stop).chunks(rows):
        wide = chunk.rows.astype(np.float32)
        values = np.empty((len(wide), d + 2), dtype)
        values[:, :d] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
        values[:, d:] = 1
        if backend == "torch":
            values = torch.from_numpy(values)
            tile = torch.empty(block, len(wide), dtype=scaled.dtype)
            sums = torch.empty(block, d + 2, dtype=scaled.dtype)
            for a in range(0, len(unit), block):
                b = min(a + block, len(unit))
                torch.mm(scaled[a:b], values[:, :d].T, out=tile[: b - a])
                torch.mm(tile[: b - a], values, out=sums[: b - a])
        else:
            tile, sums = np.empty((block, len(wide)), dtype), np.empty((block, d + 2), dtype)
            for a in range(0, len(unit), block):
                b = min(a + block, len(unit))
                np.matmul(scaled[a:b], values[:, :d].T, out=tile[: b - a])
                np.matmul(tile[: b - a], values, out=sums[: b - a])


def peak_reset():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(name)).split()[1]) * 1024


def compare(args):
    import numpy as np
    from threadpoolctl import threadpool_info, threadpool_limits

    from neuroenc._core.memory import parse_memory
    from neuroenc._core.topk import plan_blocks
    from neuroenc.captions import project
    from neuroenc.retrieval import as_bank

    if "torch" in args.backends:
        import torch

        torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    rng = np.random.default_rng(1)
    path = Path(tempfile.mkdtemp(dir=args.folder)) / "bank.npy"
    make_bank(path, args.images, args.features)
    coef = rng.standard_normal((args.features, args.voxels)).astype(np.float32)
    unit = (coef / np.linalg.norm(coef, axis=0)).T.astype(np.float64)
    budget = parse_memory(args.budget)
    rows, block = plan_blocks(budget // 4, args.features, args.voxels, 4)
    pieces = [(a, min(a + args.piece, args.images)) for a in range(0, args.images, args.piece)]
    loads, libraries = os.getloadavg(), {x["internal_api"] for x in threadpool_info()}
    print(
        f"{args.voxels} voxels, {args.images} images x {args.features} float16, tiles {block} x {rows}, "
        f"{args.threads} threads, load {loads[0]:.1f}; {', '.join(sorted(libraries))}"
    )
    print(
        "| backend | products, s | projection, s | ratio (runs) | of processor time (runs) | "
        "2,000,000 images, minutes | peak RSS |\n|---|---|---|---|---|---|---|"
    )
    for backend in args.backends:
        device = None if backend == "numpy" else "cpu"
        options = {"device": device, "max_memory": args.budget, "progress": False}
        project(coef[:, :64], as_bank(path).part(0, 2000), **options)  # warm up
        ratios, busy, alone, ours = [], [], [], []
        peak_reset()
        for _ in range(args.runs):
            peer, mine, worked = 0.0, 0.0, np.zeros(2)
            for start, stop in pieces:
                begin, cpu = time.perf_counter(), time.process_time()
                products(unit, path, start, stop, rows, block, backend, np.float32)
                middle, half = time.perf_counter(), time.process_time()
                project(coef, as_bank(path).part(start, stop), **options)
                peer += middle - begin
                mine += time.perf_counter() - middle
                worked += np.array([half - cpu, time.process_time() - half])
            ratios.append(mine / peer)
            busy.append(worked[1] / worked[0])
            alone.append(peer)
            ours.append(mine)
        scale = FULL / args.images / 60
        shown, cpu = (", ".join(f"{r:.2f}" for r in x) for x in (ratios, busy))
        print(
            f"| {backend} | {statistics.median(alone):.1f} | {statistics.median(ours):.1f} | "
            f"{statistics.median(ratios):.2f} ({shown}) | "
            f"{statistics.median(busy):.2f} ({cpu}) | {statistics.median(ours) * scale:.0f} | "
            f"{memory('VmHWM') / 1e9:.2f} GB |",
            flush=True,
        )
    path.unlink()
    path.parent.rmdir()


def precision(args):
    """What products of fewer digits would do to logits, and their time."""
    import numpy as np
    import torch

    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    w, m = (rng.standard_normal((n, args.features)) for n in (512, 4096))
    w, m = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (w, m))
    exact = 150 * w @ m.T
    a, b = (torch.from_numpy(x.astype(np.float32)) for x in (150 * w, m))
    out = torch.empty(512, 4096)

    def half(x):
        high = x.bfloat16().float()
        return high, x - high

    (ah, al), (bh, bl) = half(a), half(b)

    def three():
        torch.mm(ah, bh.T, out=out)
        out.addmm_(ah, bl.T)
        out.addmm_(al, bh.T)

    print("| products | largest error of a logit | of a softmax weight | time |")
    print("|---|---|---|---|")
    base = 0.0
    for name, mode, work in (
        ("float32", "ieee", lambda: torch.mm(a, b.T, out=out)),
        ("bf16", "bf16", lambda: torch.mm(a, b.T, out=out)),
        ("three bf16 of split numbers", "bf16", three),
    ):
        torch.backends.mkldnn.matmul.fp32_precision = mode
        work()
        times = []
        for _ in range(15):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        base = base or statistics.median(times)
        error = float(np.abs(out.numpy() - exact).max())
        print(f"| {name} | {error:.1e} | {np.expm1(error):.1e} | {statistics.median(times) / base:.2f} |")


def cones(mirror):
    """Cones of real CLIP text vectors and of the simulated world's CLIP, then the table of projections."""
    import pandas as pd

    from concept_cone import concept_cone, cone, geometry
    from neuroenc.data.simulate import simulate_world
    from neuroenc.embedding import ImageEmbedder, TextEmbedder

    made, scenes = concept_cone(mirror), simulate_world(1000, seed=1)
    told = [several[0] for several in scenes.captions]
    spaces = {
        "CLIP ViT-B/32, texts of concepts": made.names,
        "images simulated around them": made.bank[:: len(made.bank) // 1000],
        "world, images": ImageEmbedder("world", progress=False).embed(scenes).values,
        "world, captions": TextEmbedder("world", progress=False).embed(sorted(set(told))).values,
    }
    print(pd.DataFrame({name: cone(rows) for name, rows in spaces.items()}).T.round(2).to_string())
    print(geometry(mirror).round(3).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="compare", choices=["compare", "precision", "geometry"])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--voxels", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--piece", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", default="1500MB")
    parser.add_argument("--folder", default="/tmp")
    parser.add_argument("--backends", nargs="+", default=["numpy", "torch"], choices=["numpy", "torch"])
    parser.add_argument("--mirror", default=None, help="folder with data sets, of geometry")
    chosen = parser.parse_args()
    if chosen.what == "geometry":
        cones(chosen.mirror)
    else:
        precision(chosen) if chosen.what == "precision" else compare(chosen)
