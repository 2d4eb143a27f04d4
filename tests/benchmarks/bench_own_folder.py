"""A user's own folder through every readout: 10,000 small pictures (.png), captions, responses of six neurons (.npy).

    python tests/benchmarks/bench_own_folder.py FOLDER [--pictures 10000]

Writes the folder with a config, and runs `neuroenc compare` on it. Pictures show one coloured shape on noise. Neurons
see the mean of Gabor energy or colour under a Gaussian receptive field, two of them only where a disc is shown. Noise
is as large as the signal, so no readout can pass r = .71. Prints seconds, and for every readout r of the four neurons
with one field and of the two that the caption switches.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image, ImageDraw

from neuroenc.data import Stimuli, find_pictures
from neuroenc.embedding import ImageEmbedder
from neuroenc.encoders.readout import READOUTS
from neuroenc.study import compare, read_config

SIDE, GRID = 32, 8
COLOURS = {"red": (200, 60, 50), "green": (60, 160, 70), "blue": (60, 90, 200), "yellow": (210, 190, 60)}
SHAPES = ("disc", "square", "bar")
CONFIG = """
title = "Own pictures and neurons through every readout"
[data]
responses = "responses.npy"
samples = "samples.csv"
images = "images"
captions = "captions.csv"
[features.gabor]
model = "gabor"
layer = "map"
preprocessing = { size = 48 }
[features.colour]
model = "colour"
layer = "map"
preprocessing = { size = 48 }
[features.captions]
kind = "captions"
model = "minilm"
[features.maps]
spaces = ["gabor", "colour"]
grid = 8
[compare]
cv = 3
n_candidates = 1
cells = ["maps/*"]
[compare.training]
max_epochs = 10
patience = 3
"""


def embedder(name: str) -> ImageEmbedder:
    return ImageEmbedder(name, layer="map", preprocessing={"size": 48}, progress=False, cache=False)


def make(folder: Path, n: int, seed: int = 0) -> None:
    """Pictures, captions, responses, the table of trials, and a config."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    ids, captions, disc = [f"p{k:05d}" for k in range(n)], [], []
    for one in ids:
        noise = rng.integers(90, 166, (8, 8, 1), dtype=np.uint8) + rng.integers(0, 20, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        (x, y), r = rng.uniform(6, 26, 2), rng.uniform(3, 7)
        pen, box = ImageDraw.Draw(picture), (x - r, y - (r / 3 if shape == "bar" else r), x + r, y + r)
        (pen.ellipse if shape == "disc" else pen.rectangle)(box, fill=COLOURS[colour])
        picture.save(folder / "images" / f"{one}.png")
        captions.append(f"a {colour} {shape} on the {'left' if x < SIDE / 2 else 'right'}")
        disc.append(shape == "disc")
    table = pd.DataFrame({"stimulus": ids})
    table.to_csv(folder / "samples.csv", index=False)
    table.assign(caption=captions).to_csv(folder / "captions.csv", index=False)
    stimuli = Stimuli(np.array(ids), find_pictures(folder / "images", ids))
    maps = [embedder(name).embed(stimuli).values for name in ("gabor", "colour")]
    maps = [(m - m.mean((0, 2, 3), keepdims=True)) / m.std((0, 2, 3), keepdims=True) for m in maps]
    place = (np.arange(maps[0].shape[-1]) + 0.5) / maps[0].shape[-1] * 2 - 1
    answers = []
    for k in range(6):
        seen = maps[k % 2]
        field = np.exp(
            -0.5 * sum((p - c) ** 2 for p, c in zip(np.meshgrid(place, place), rng.uniform(-0.5, 0.5, 2))) / 0.09
        )
        found = np.einsum("ncyx,yx,c->n", seen, field / field.sum(), rng.standard_normal(seen.shape[1]))
        found = (found - found.mean()) / found.std() * (np.array(disc) if k >= 4 else 1)
        answers.append((found - found.mean()) / found.std())
    Y = np.stack(answers, 1) + rng.standard_normal((n, 6))
    np.save(folder / "responses.npy", Y.astype(np.float32))
    rows = {k: 'context = "captions"' if k in ("sentence_gate", "patch_summary") else "" for k in READOUTS}
    text = CONFIG + "".join(f"[compare.readouts.{k}]\n{line}\n" for k, line in rows.items())
    (folder / "compare.toml").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=10_000)
    options = parser.parse_args()
    begin = time.perf_counter()
    make(options.folder, options.pictures)
    print(f"folder: {time.perf_counter() - begin:.0f} s", flush=True)
    begin, out = time.perf_counter(), options.folder / "out"
    compare(read_config(options.folder / "compare.toml"), out)
    print(f"neuroenc compare: {time.perf_counter() - begin:.0f} s")
    print("| readout | median r | one field | switched by captions | parameters | seconds |")
    print("|---|---|---|---|---|---|")
    cells = pd.read_csv(out / "comparison.csv").query("kind == 'all'").sort_values("median_r", ascending=False)
    r = xr.open_dataset(out / "voxels.nc")["r"]
    for row in cells.itertuples():
        own = r.sel(cell=row.cell).values
        print(
            f"| {row.readout} | {row.median_r:.3f} ({row.low:.3f} to {row.high:.3f}) | {np.median(own[:4]):.3f} | "
            f"{np.median(own[4:]):.3f} | {row.n_parameters:,.0f} | {row.seconds:.0f} |"
        )


if __name__ == "__main__":
    main()
