"""`neuroenc caption` stage by stage, readings of its bank, and the size of its report.

    python tests/benchmarks/bench_caption_workflow.py stages [--voxels 280] [--subjects 2] [--images 0]
        [--folder /tmp] [--set table.key=value ...]
    python tests/benchmarks/bench_caption_workflow.py reading [--voxels 5000] [--images 50000] [--features 384]
        [--runs 5] [--folder /tmp]
    python tests/benchmarks/bench_caption_workflow.py report [--voxels 20000] [--images 60000] [--folder /tmp]

`stages` runs the simulated world's captioning and prints seconds of each stage (of the clock and of the processor) and
the peak memory above the start; with `--images` the bank lies on disk, shards of float16 of which nobody knows captions
(embeddings of scenes, jittered). `reading` asks a bank on disk for all that the stages need of it, in one reading and
in a reading each, piece of the bank by piece in turn, so that what else the machine does hits both. `report` writes the
page of a brain's worth of voxels.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import threading
import time
from pathlib import Path


class Peak:
    """Largest resident memory while it runs, in MB above the start."""

    def __enter__(self):
        self.start, self.most, self._stop = self._now(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    @staticmethod
    def _now():
        with open("/proc/self/statm") as handle:
            return int(handle.read().split()[1]) * 4096 / 1e6

    def _watch(self):
        while not self._stop.wait(0.05):
            self.most = max(self.most, self._now() - self.start)

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def write_bank(folder, rows_of, n, shard=10_000):
    """A bank in the layout of `neuroenc bank build`; ``rows_of(rng, m)`` makes its embeddings."""
    import numpy as np
    import pandas as pd

    from neuroenc.retrieval._shards import finish_bank, write_shard

    rng, records = np.random.default_rng(0), []
    for number, a in enumerate(range(0, n, shard)):
        m = min(shard, n - a)
        table = pd.DataFrame({"id": [f"photo-{k:08d}" for k in range(a, a + m)]})
        for column in ("file", "licence", "licence_url", "source", "sha256"):
            table[column] = ""
        rows = rows_of(rng, m).astype(np.float16)
        records.append(write_shard(folder, number, rows, table, pd.DataFrame(columns=["id", "file", "reason", "of"])))
    finish_bank(folder, records, {"model": "made up"})
    return folder


def clusters(width):
    import numpy as np

    centres = np.random.default_rng(1).standard_normal((64, width)) + 1.5

    def rows_of(rng, m):
        return centres[rng.integers(0, 64, m)] + rng.standard_normal((m, width))

    return rows_of


def scenes():
    """Embeddings of 1,500 scenes of the world, jittered."""
    from neuroenc.data.simulate import simulate_world
    from neuroenc.embedding import ImageEmbedder

    seen = ImageEmbedder("world", progress=False).embed(simulate_world(1500, seed=5)).values
    spread = 0.3 * seen.std(axis=0)

    def rows_of(rng, m):
        return seen[rng.integers(0, len(seen), m)] + spread * rng.standard_normal((m, seen.shape[1]))

    return rows_of


def stages(args):
    from neuroenc.study import caption, example_config

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        settings = [f"data.options.n_voxels={args.voxels}", f"data.options.n_subjects={args.subjects}"]
        if args.images:
            bank = write_bank(Path(folder) / "bank", scenes(), args.images)
            settings += [f"captions.bank.source={bank}", "captions.decoder.caption_bank=stimuli"]
        config = example_config("world", settings + args.set, "caption")
        rows, now = [], [time.perf_counter(), time.process_time(), "data"]

        def say(line):
            # A stage ends where its seconds are told; what stands between two of them goes by the headline before.
            found = re.match(r"\s+([\w-]+): [\d.]+ s", line)
            headline = re.match(r"(\d/\d|\d+ of) ", line)
            if found or headline:
                clock, processor = time.perf_counter(), time.process_time()
                name = found[1] if found else f"{now[2]}, rest"
                rows.append((name, clock - now[0], processor - now[1]))
                now[:] = clock, processor, line.split(":")[0].strip() if headline else now[2]

        with Peak() as peak:
            began = time.perf_counter(), time.process_time()
            summary = caption(config, Path(folder) / "out", progress=False, say=say)
            whole = time.perf_counter() - began[0], time.process_time() - began[1]
        size = {p.name: p.stat().st_size for p in (Path(folder) / "out" / "report").rglob("*") if p.is_file()}
    print(f"{summary['n_captioned']} of {summary['n_voxels']} voxels captioned; bank of {args.images or 2000} images")
    print("| stage | seconds | of the processor | share of it |\n|---|---|---|---|")
    for name, clock, processor in rows:
        if processor > 0.005 * whole[1]:
            print(f"| {name} | {clock:.1f} | {processor:.1f} | {processor / whole[1]:.0%} |")
    print(f"| all | {whole[0]:.1f} | {whole[1]:.1f} | |")
    print(
        f"peak memory {peak.most:.0f} MB above the start; index.html {size['index.html'] / 1e6:.1f} MB, "
        f"report {sum(size.values()) / 1e6:.1f} MB in {len(size)} files"
    )


def reading(args):
    """One reading against one for each that asks, on pieces of the bank in turn."""
    import numpy as np

    from neuroenc.captions import bank_folds, evidence, project
    from neuroenc.captions._bank_pass import BankPass
    from neuroenc.captions.checks._grounding_bank import read_images
    from neuroenc.captions.projection._project import project_folds
    from neuroenc.retrieval import as_bank

    rng = np.random.default_rng(0)
    weights, again = (rng.standard_normal((args.features, v)).astype(np.float32) for v in (args.voxels, 300))
    shuffled = rng.permuted(weights, axis=0)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        bank = as_bank(write_bank(Path(folder) / "bank", clusters(args.features), args.images))
        masks = bank_folds(args.images, 5)

        def together(part, masks):
            asked = BankPass(part)
            asked.project(weights)
            asked.evidence(weights, k=16, keep_rows=True)
            asked.project(shuffled)
            asked.images(min(1000, part.n))
            for mask in masks:
                asked.project(again, mask)
            for _ in range(7):
                asked.project(again)
            asked.read()

        def each(part, masks):
            quiet = {"progress": False}
            project(weights, part, **quiet)
            evidence(weights, part, k=16)
            project(shuffled, part, **quiet)
            evidence(shuffled, part, k=16)
            read_images(part, [], min(1000, part.n), 0, None)
            # A sample and its null, as the stages asked one after the other.
            for mask in masks:
                for some in (again[:, :200], again[:, 200:]):
                    project_folds(some, part, mask[None], **quiet)
            for _ in range(7):
                for some in (again[:, :200], again[:, 200:]):
                    project(some, part, **quiet)
            project(weights, part, **quiet)

        ratios, step = [], args.images // args.runs
        seconds = {together: 0.0, each: 0.0}
        with Peak() as peak:
            for run in range(args.runs):
                a = run * step
                part = bank.part(a, a + step)
                pair = {}
                for way in (together, each) if run % 2 else (each, together):
                    began = time.perf_counter()
                    way(part, masks[:, a : a + step])
                    pair[way] = time.perf_counter() - began
                    seconds[way] += pair[way]
                ratios.append(pair[each] / pair[together])
    print(f"{args.voxels} voxels, bank of {args.images} x {args.features} float16 on disk, pieces of {step}")
    print(
        f"one reading {seconds[together]:.1f} s, 30 readings {seconds[each]:.1f} s; ratio "
        f"{statistics.median(ratios):.2f} [{min(ratios):.2f} {max(ratios):.2f}]; "
        f"peak {peak.most:.0f} MB above the start"
    )


def report(args):
    """A page of many voxels, each with 16 images of its own choice."""
    import numpy as np
    import pandas as pd
    import xarray as xr

    from neuroenc.captions import CaptionStudy
    from neuroenc.report import write_caption_report

    rng, n = np.random.default_rng(0), args.voxels
    regions = [f"region {k}" for k in range(20)]
    things = ["dog", "house", "pizza", "sign", "hand", "street", "man", "bird", "boat", "tree"]
    doing = ["stands", "runs", "lies", "waits"]
    voxels = np.arange(n)
    texts = [
        f"a {a} {d} near a {b} and a {c}"
        for a, b, c, d in zip(*(rng.choice(things, 3 * n) for _ in range(3)), rng.choice(doing, 3 * n))
    ]
    captions = pd.DataFrame(
        {"voxel": np.repeat(voxels, 3), "rank": np.tile([1, 2, 3], n), "caption": texts, "score": rng.random(3 * n)}
    )
    starts = [[2, 2 + len(t.split()[1])] for t in texts]
    phrases = captions[["voxel", "rank"]].assign(
        phrase=[t[a:b] for t, (a, b) in zip(texts, starts)],
        start=[a for a, _ in starts],
        end=[b for _, b in starts],
        in_images=rng.random(3 * n),
        predicted=rng.random(3 * n),
        percentile=rng.random(3 * n),
        verdict=rng.choice(["supported", "uncertain", "unsupported"], 3 * n),
    )
    evidence = pd.DataFrame(
        {
            "voxel": np.repeat(voxels, 16),
            "rank": np.tile(np.arange(1, 17), n),
            "stimulus": [f"photo-{k:08d}" for k in rng.integers(0, args.images, 16 * n)],
            "predicted": rng.random(16 * n),
        }
    )
    half = -(-n // 2)
    vertex = np.concatenate([rng.permutation(10_242)[np.arange(half) % 10_242] for _ in range(2)])[:n]
    scores = xr.Dataset(
        {"r": ("voxel", rng.random(n).astype(np.float32)), "q_value": ("voxel", np.zeros(n, np.float32))},
        coords={
            "voxel": voxels,
            "roi": ("voxel", rng.choice(regions, n)),
            "vertex": ("voxel", vertex),
            "hemi": ("voxel", np.repeat(["L", "R"], half)[:n]),
        },
        attrs={"space": "fsaverage5"},
    )
    gate = pd.DataFrame({"voxel": voxels, "captioned": True, "reason": ""})
    study = CaptionStudy("many voxels", scores, captions, evidence, gate, phrases=phrases)

    def picture(name):
        """Noise over a gradient: about as many bytes as a photograph's thumbnail."""
        one = np.random.default_rng(int(name[6:]))
        return (one.integers(0, 60, (96, 96, 3)) + np.arange(96)[:, None, None] * 2).astype(np.uint8)

    folder = Path(args.folder) / "caption-report-of-a-brain"
    began = time.perf_counter(), time.process_time()
    with Peak() as peak:
        page = write_caption_report(study, folder, images=picture, progress=False)
    sizes = {p.relative_to(folder): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    parts = {}
    for name, size in sizes.items():
        key = name.parts[0] if len(name.parts) > 1 else name.suffix
        parts[key] = (parts.get(key, (0, 0))[0] + size, parts.get(key, (0, 0))[1] + 1)
    clock, processor = time.perf_counter() - began[0], time.process_time() - began[1]
    print(
        f"{n} voxels, {args.images} images to choose from: {clock:.0f} s ({processor:.0f} s of the processor), peak "
        f"{peak.most:.0f} MB above the start; {page}"
    )
    for key, (size, count) in sorted(parts.items(), key=lambda x: -x[1][0]):
        print(f"  {key:12} {size / 1e6:7.1f} MB in {count} files")
    print(f"  index.html   {page.stat().st_size / 1e6:.2f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["stages", "reading", "report"])
    parser.add_argument("--voxels", type=int)
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--images", type=int)
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    voxels, images = {"stages": (280, 0), "reading": (5000, 50_000), "report": (20_000, 60_000)}[args.what]
    args.voxels = voxels if args.voxels is None else args.voxels
    args.images = images if args.images is None else args.images
    {"stages": stages, "reading": reading, "report": report}[args.what](args)


if __name__ == "__main__":
    main()
