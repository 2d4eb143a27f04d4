"""Memory of loading BOLD5000 and Generic Object Decoding, several times larger than ``max_memory``.

``python tests/benchmarks/bench_loaders.py`` writes large trees of noise and loads each in a process of its own. "Extra
peak" is resident memory above that before the call, after a small load through the disk that brings in all modules;
mapped pages of files count too. "Labels" is what the coordinates and the table of stimuli weigh, a part of the peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROWS = [
    ("bold5000", {"form": "volumes"}),
    ("bold5000", {"form": "volumes", "repeats": "average"}),
    ("bold5000", {"form": "regions"}),
    ("bold5000-release1-h5", {"form": "release1"}),
    ("bold5000-release1-mat", {"form": "release1"}),
    ("god", {}),
    ("god", {"repeats": "average"}),
    ("god-compressed", {}),
]


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(name))


def widen(path: Path, n_voxels: int, **storage: Any) -> None:
    """The small table of `god_tree` with many more voxels."""
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(path, "r") as handle:
        columns = handle["dataset"][:, 12:]
        keys, value = handle["metadata/key"][:], handle["metadata/value"][:]
    names = [k.decode() for k in keys]
    xyz = 3.0 * np.stack(np.unravel_index(np.arange(n_voxels), (40, 40, -(-n_voxels // 1600))))
    made = np.full((len(names), n_voxels), np.nan)
    for name, row in zip(names, made, strict=True):
        if name.startswith(("ROI", "VoxelData")):
            row[:] = 1
        elif name.startswith("voxel_"):
            row[:] = xyz["xyz".index(name[-1])]
    with h5py.File(path, "w") as handle:
        table = handle.create_dataset("dataset", (len(columns), n_voxels + 3), "f8", **storage)
        for first in range(0, len(columns), 100):
            own = columns[first : first + 100]
            table[first : first + 100] = np.hstack([rng.standard_normal((len(own), n_voxels)), own])
        handle["metadata/key"] = keys
        handle["metadata/value"] = np.hstack([made, value[:, 12:]])


def write(name: str, root: Path, scale: float = 1.0) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    from trees import bold5000_tree, god_tree

    if name.startswith("god"):
        n = int(500 * scale) or 4
        god_tree(root, n_train=n, n_test=10, n_repeats=n // 10 or 2)
        storage = {"chunks": True, "compression": "gzip"} if "compressed" in name else {}
        widen(root / "Subject1.h5", int(12_000 * scale) or 20, **storage)
        return
    shape = (36, 38, 30) if scale >= 1 else (4, 5, 3)
    lengths = (150,) * 6 if scale >= 1 else (6, 6)
    bold5000_tree(
        root, subject="CSI1", lengths=lengths, shape=shape, pictures=False, release=1 if "release1" in name else 2
    )
    if name.endswith(("-h5", "-mat")):
        other = "mat" if name.endswith("h5") else "h5"
        next(root.rglob(f"*_ROIs_TR34.{other}")).unlink()


def weight(found: Any) -> int:
    responses = found.responses
    size = sum(np.asarray(c.values).nbytes for c in responses.coords.values())
    return size + int(found.stimuli.table.memory_usage(deep=True).sum())


def child(name: str, root: str, small: str, options: dict[str, Any], max_memory: int) -> None:
    from neuroenc import data

    common = {"progress": False, "max_memory": max_memory, "subject": 1, "cache": f"{root}-stores"}
    data.load_dataset(name, root=small, **{**common, "max_memory": 400}, **options)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _status("VmRSS"), time.perf_counter()
    found = data.load_dataset(name, root=root, **common, **options)
    seconds, peak = time.perf_counter() - start, _status("VmHWM") - before
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak": peak,
                "shape": found.responses.shape,
                "labels": weight(found),
                "lazy": hasattr(found.responses.data, "dask"),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-memory", type=int, default=20_000_000)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--only", default="")
    parser.add_argument("--child", nargs=5)
    args = parser.parse_args()
    if args.child:
        name, root, small, options, memory = args.child
        return child(name, root, small, json.loads(options), int(memory))
    print(f"max_memory {args.max_memory / 1e6:.0f} MB\n")
    print("| data set | options | responses MB | extra peak MB | of it labels MB | seconds | on disk |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for name, options in ROWS:
            if args.only not in name:
                continue
            root, small = Path(folder) / name, Path(folder) / f"{name}-small"
            if not root.is_dir():
                write(name, root)
                write(name, small, 0.01)
            command = [
                sys.executable,
                __file__,
                "--child",
                name.split("-")[0],
                str(root),
                str(small),
                json.dumps(options),
                str(args.max_memory),
            ]
            run = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
            if run.returncode:
                print(run.stderr[-2000:])
                continue
            r = json.loads(run.stdout.splitlines()[-1])
            size = 4 * int(np.prod(r["shape"]))
            cells = [
                name,
                " ".join(f"{k}={v}" for k, v in options.items()),
                f"{size / 1e6:.0f}",
                f"{r['peak'] / 1e6:.1f}",
                f"{r['labels'] / 1e6:.1f}",
                f"{r['seconds']:.1f}",
                "yes" if r["lazy"] else "no",
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
