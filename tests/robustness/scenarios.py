"""Small inputs for every command that writes, as a user would have them in a folder; all commands are run in it."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image

from neuroenc import data
from neuroenc.data import make_features, make_responses

RUN = """
title = "Own arrays"
[data]
responses = "y.nc"
images = "images"
[features.world]
kind = "image"
model = "world"
[encoder]
cv = 3
[evaluation]
n_splits = 2
permutations = 50
"""
COMPARE = """
title = "Mine"
[data]
responses = "y.nc"
[features.right]
kind = "file"
file = "maps.nc"
[features.wrong]
kind = "file"
file = "noise.nc"
[compare]
cv = 2
n_bootstraps = 50
n_candidates = 1
cells = ["*/linear", "right/factorized"]
readouts = { linear = {}, factorized = {} }
training = { max_epochs = 2 }
"""
ICL = """
[incontext.task]
kind = "arrays"
[[incontext.task.train]]
features = "features.nc"
responses = "one.nc"
[[incontext.task.train]]
features = "features.nc"
responses = "two.nc"
[[incontext.task.test]]
name = "new"
features = "features.nc"
responses = "new.nc"
[incontext.model]
dim = 16
depth = 1
heads = 2
hidden = 32
clusters = 2
[incontext.pretrain]
support = [30, 30]
query = 20
voxels = 8
max_steps = 20
evaluate_every = 5
warmup = 5
validation_sizes = [20]
[incontext.extend]
support = [10, 60]
query = 20
voxels = 8
max_steps = 10
evaluate_every = 5
validation_sizes = [10]
[incontext.finetune]
support = [10, 60]
query = 20
voxels = 8
max_steps = 10
evaluate_every = 5
validation_sizes = [10]
[incontext.evaluate]
sizes = [12, 40]
n_draws = 2
n_query = 40
groups = "roi"
n_bootstraps = 50
[incontext.predict]
model = "icl-out/finetune/anchored"
n_support = 40
"""
CAPTION = [
    "caption",
    "--example",
    "world",
    "--set",
    "data.options.n_subjects=1",
    "--set",
    "data.options.n_train=200",
    "--set",
    "data.options.n_test=30",
    "--set",
    "data.options.n_bank=200",
    "--set",
    "data.options.n_voxels=40",
    "--set",
    "captions.decoder.beams=2",
    "--set",
    "captions.decoder.groups=2",
    "--set",
    "captions.decoder.top=2",
    "--set",
    "captions.stability.folds=2",
    "--set",
    "captions.stability.bootstraps=0",
    "--set",
    "captions.stability.halves=0",
    "--set",
    "captions.stability.null_voxels=5",
    "--set",
    "captions.stability.max_voxels=10",
    "--set",
    "evaluation.permutations=50",
]

SPACE = ["space", "train", "ranked", "--captions", "captions.csv", "--images", "images", "--image-model", "world"]
SPACE += ["--mine", "2", "--set", "dims=16", "--set", "epochs=20", "--set", "batch_size=8"]


@dataclass(frozen=True)
class Scenario:
    """Arguments of a command, what it writes, and what must have run before it."""

    arguments: list[str]
    out: str
    before: tuple[str, ...] = ()


# Needs the server of `server`.
DOWNLOAD = Scenario(["data", "fetch", "served.toml", "--dest", "data-out", "--quiet"], "data-out")


def scenarios(mirror: Path) -> dict[str, Scenario]:
    """Every command that writes; the long ones in small."""
    found = {
        "run": Scenario(["run", "my.toml", "--out", "run-out", "--quiet"], "run-out"),
        "compare": Scenario(["compare", "compare.toml", "--out", "compare-out", "--quiet"], "compare-out"),
        "caption": Scenario([*CAPTION, "--out", "caption-out", "--quiet"], "caption-out"),
        "bank": Scenario(["bank", "build", "images", "--out", "bank-out", "--model", "world", "--quiet"], "bank-out"),
        "export": Scenario(
            ["export", "run-out", "--bids", "bids-out", "--subject", "1", "--space", "T1w"], "bids-out", ("run",)
        ),
        "fetch": Scenario(["data", "fetch", "objects92", "--dest", "data-out", "--mirror", str(mirror)], "data-out"),
        "space": Scenario([*SPACE, "--out", "space-out", "--quiet"], "space-out"),
        "demo": Scenario(["demo", "--out", "demo-out", "--quiet"], "demo-out"),
    }
    before: tuple[str, ...] = ()
    for stage in ("pretrain", "extend", "finetune", "evaluate", "predict"):
        found[stage] = Scenario(["icl", stage, "icl.toml", "--out", "icl-out", "--quiet"], "icl-out", before)
        before = (*before, stage)
    return found


def make_inputs(folder: Path, served: str = "") -> None:
    """Everything that the scenarios read; ``served`` is the manifest of `server`."""
    (folder / "served.toml").write_text(served)
    rng = np.random.default_rng(0)
    world = data.simulate_world(60, seed=3)
    (folder / "images").mkdir()
    for n, name in enumerate(world.ids):
        Image.fromarray(np.asarray(world.image(n))).save(folder / "images" / f"{name}.png")
    maps = rng.standard_normal((60, 3, 4, 4)).astype("f4")
    weights = rng.standard_normal((48, 12)) / np.sqrt(48)
    values = (maps.reshape(60, -1) @ weights + 0.5 * rng.standard_normal((60, 12))).astype("f4")
    mask = np.zeros((4, 3, 2), "u1")
    mask.flat[:12] = 1
    nib.save(nib.Nifti1Image(mask, np.diag([2.0, 2, 2, 1])), folder / "mask.nii.gz")
    grid = np.zeros((4, 3, 2, 60), "f4")
    grid[mask > 0] = values.T
    masked = data.load_masked(nib.Nifti1Image(grid, np.diag([2.0, 2, 2, 1])), folder / "mask.nii.gz")
    responses = masked.responses(stimulus=world.ids, session=np.repeat([1, 2, 3], 20), run=np.repeat(range(6), 10))
    data.save(responses, folder / "y.nc")
    captions = [(str(i), world.captions[n][0]) for n, i in enumerate(world.ids)]
    pd.DataFrame(captions, columns=["stimulus", "caption"]).to_csv(folder / "captions.csv", index=False)
    data.save(make_features(maps, stimulus=world.ids), folder / "maps.nc")
    data.save(make_features(rng.standard_normal(maps.shape).astype("f4"), stimulus=world.ids), folder / "noise.nc")
    ids = [f"img{i:03d}" for i in range(150)]
    X = rng.standard_normal((150, 10)).astype("f4") / np.sqrt(10)
    data.save(make_features(X, stimulus=ids), folder / "features.nc")
    for name in ("one", "two", "new"):
        W = np.outer(rng.standard_normal(10), np.ones(24)) + 0.5 * rng.standard_normal((10, 24))
        Y = (X @ W + 0.5 * rng.standard_normal((150, 24))).astype("f4")
        data.save(make_responses(Y, stimulus=ids, roi=["a"] * 12 + ["b"] * 12), folder / f"{name}.nc")
    (folder / "my.toml").write_text(RUN.replace('images = "images"', 'images = "images"\ncaptions = "captions.csv"'))
    (folder / "compare.toml").write_text(COMPARE)
    (folder / "icl.toml").write_text(ICL)


SERVED = np.random.default_rng(1).integers(0, 256, (3, 4_000_000), dtype=np.uint8)


class Handler(http.server.BaseHTTPRequestHandler):
    """Three files, slowly, from the byte that is asked for."""

    def do_GET(self) -> None:
        body = SERVED[int(self.path[1:])].tobytes()
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        with contextlib.suppress(OSError):  # the one who asked was killed
            for at in range(start, len(body), 100_000):
                self.wfile.write(body[at : at + 100_000])
                time.sleep(0.02)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A manifest of files that a server on this machine gives while the block runs."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    lines = [f'{key} = "served"' for key in ("name", "title", "description", "licence", "redistribution", "citation")]
    for n, body in enumerate(SERVED):
        digest = hashlib.sha256(body.tobytes()).hexdigest()
        lines += ["[[files]]", f'path = "part/{n}.bin"', f'url = "http://127.0.0.1:{httpd.server_port}/{n}"']
        lines += [f'sha256 = "{digest}"', f"size = {body.size}"]
    try:
        yield "\n".join(lines) + "\n"
    finally:
        httpd.shutdown()
        httpd.server_close()
