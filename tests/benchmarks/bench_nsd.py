"""Memory and time of loading a subject of NSD whose responses are many times larger than ``max_memory``.

``python tests/benchmarks/bench_nsd.py`` writes a tree with a large simulated volume (noise; only sizes matter here),
loads it in a process of its own for every row, and prints a table. "Extra peak" is the highest resident memory during
the call above that before it, after a small load that brings in all modules; labels of voxels (about 70 bytes each)
are part of it.
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

import numpy as np

TRIALS = 300
BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"


def write(root: Path, shape: tuple[int, int, int], sessions: int) -> None:
    """A miniature tree whose first subject gets a large volume."""
    import h5py
    import nibabel as nib

    from neuroenc.data.simulate import nsd_tree

    nsd_tree(root, n_subjects=1, n_shared=100 * (sessions - 1), n_unique=100, n_sessions=(sessions,) * 8, n_voxels=60)
    rng = np.random.default_rng(0)
    for path in (root / "nsddata/ppdata/subj01/func1pt8mm").rglob("*.nii.gz"):
        path.unlink()
    folder = root / "nsddata/ppdata/subj01/func1pt8mm"
    mask = np.ones(shape, np.uint8)
    mask[rng.random(shape) < 0.02] = 0
    part = (mask > 0) & (np.indices(shape)[1] < shape[1] // 8)
    nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / "brainmask.nii.gz")
    nib.save(nib.Nifti1Image(part.astype(np.int16), np.eye(4)), folder / "roi" / "nsdgeneral.nii.gz")
    (root / BETAS / "ncsnr.nii.gz").unlink()
    for n in range(1, sessions + 1):
        values = rng.normal(0, 300, (*shape, TRIALS)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.eye(4)), root / BETAS / f"betas_session{n:02d}.nii.gz")
        with h5py.File(root / BETAS / f"betas_session{n:02d}.hdf5", "w") as handle:
            handle.create_dataset("betas", data=values.T, chunks=(TRIALS, 1, 1, 1))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(name))


def child(root: str, voxels: str, file_format: str, repeats: str, max_memory: int) -> None:
    from neuroenc import data

    options = {
        "file_format": file_format,
        "repeats": repeats,
        "max_memory": max_memory,
        "progress": False,
        "cache": f"{root}-stores",
        "captions": False,
    }
    mask = np.zeros(data.nsd_mask(root, 1, "brain").shape, bool)
    mask[3, 3, :] = True
    data.nsd(root, 1, voxels=mask, **options).responses.values.sum()
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _status("VmRSS"), time.perf_counter()
    found = data.nsd(root, 1, voxels=voxels, **options).responses
    seconds = time.perf_counter() - start
    peak = _status("VmHWM") - before
    print(json.dumps({"seconds": seconds, "peak": peak, "shape": found.shape, "lazy": hasattr(found.data, "dask")}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(36, 38, 30))
    parser.add_argument("--sessions", type=int, default=17)
    parser.add_argument("--max-memory", type=int, default=40_000_000)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--child", nargs=5)
    args = parser.parse_args()
    if args.child:
        root, voxels, file_format, repeats, memory = args.child
        return child(root, voxels, file_format, repeats, int(memory))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder) / "nsd"
        write(root, tuple(args.shape), args.sessions)
        stored = args.sessions * TRIALS * int(np.prod(args.shape))
        print(
            f"betas {stored * 2 / 1e6:.0f} MB as int16, {stored * 4 / 1e6:.0f} MB as float32; max_memory"
            f" {args.max_memory / 1e6:.0f} MB\n"
        )
        print("| voxels | files | repeats | responses MB | times max_memory | extra peak MB | seconds | on disk |")
        print("|---|---|---|---|---|---|---|---|")
        rows = [
            ("nsdgeneral", "nii.gz", "keep"),
            ("nsdgeneral", "hdf5", "keep"),
            ("brain", "nii.gz", "keep"),
            ("brain", "nii.gz", "average"),
            ("brain", "hdf5", "keep"),
        ]
        for voxels, file_format, repeats in rows:
            command = [
                sys.executable,
                __file__,
                "--child",
                str(root),
                voxels,
                file_format,
                repeats,
                str(args.max_memory),
            ]
            run = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
            if run.returncode:
                print(run.stderr[-2000:])
                continue
            r = json.loads(run.stdout.splitlines()[-1])
            size = args.sessions * TRIALS * r["shape"][1] * 4
            cells = [
                voxels,
                file_format,
                repeats,
                f"{size / 1e6:.0f}",
                f"{size / args.max_memory:.1f}",
                f"{r['peak'] / 1e6:.1f}",
                f"{r['seconds']:.1f}",
                "yes" if r["lazy"] else "no",
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
