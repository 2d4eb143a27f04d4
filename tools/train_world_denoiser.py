"""Train the simulated world's denoiser: ``python tools/train_world_denoiser.py --out DIR``.

A diffusion prior of some 1.3 million parameters over image embeddings of the world's CLIP, from scenes that no test or
demo shows, and from nothing but these. Scenes of another seed then say whether it draws what it learned or what it saw.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc._core.files import write_json
from neuroenc._core.progress import progress
from neuroenc.embedding import ImageEmbedder

__all__ = ["main", "train_world_denoiser"]

# As for the world's CLIP: training scenes far from those of tests and demos, and the same held-out scenes.
_TRAIN_SEED, _HELD_OUT_SEED = 10_000_000, 1_000_003


def _images(n: int, seed: int, device: str, show: bool) -> np.ndarray:
    """Embeddings of scenes; the scenes are not kept."""
    from neuroenc.data.simulate import simulate_world

    embedder = ImageEmbedder("world", device=device, cache=False, progress=False)
    parts = [
        embedder.embed(simulate_world(min(500, n - start), seed=seed + start // 500)).values
        for start in progress(range(0, n, 500), desc="scenes", show=show)
    ]
    return np.concatenate(parts)


def train_world_denoiser(
    out: str | Path,
    *,
    scenes: int = 14_000,
    steps: int = 6000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    width: int = 192,
    depth: int = 4,
    minutes: float | None = None,
    held_out: int = 1_000,
    seed: int = 0,
    device: str = "cpu",
    show: bool = True,
) -> dict[str, Any]:
    """Train, write a folder for ``ConceptDenoiser.load`` in float16, and measure what was written.

    Parameters
    ----------
    out : path
    scenes : int
    steps, batch_size, learning_rate, width, depth, minutes
        As in :class:`ConceptDenoiser`.
    held_out : int
        Scenes of another seed for the measures.
    seed : int
    device : str
    show : bool
        Progress bars.

    Returns
    -------
    dict
        The content of ``metrics.json``; see :func:`copying` for its measures.
    """
    from neuroenc.captions.projection._denoiser import ConceptDenoiser
    from neuroenc.captions.projection._denoiser_model import copying, synthetic_weights

    began = time.monotonic()
    train = _images(scenes, _TRAIN_SEED + 1_000 * seed, device, show)
    unseen = _images(held_out, _HELD_OUT_SEED + seed, device, show)
    denoiser = ConceptDenoiser(width=width, depth=depth, seed=seed, device=device)
    denoiser.fit(train, steps=steps, batch_size=batch_size, lr=learning_rate, minutes=minutes, progress=show)
    out = Path(out)
    denoiser.save(out, dtype="float16", scenes=scenes, backbone="world")
    written = ConceptDenoiser.load(out, device=device)
    weights = synthetic_weights(unseen, 200, seed=seed + 1).T
    samples = written.sample(weights, n_samples=4, seed=seed).values.reshape(-1, train.shape[1])
    training = denoiser.training_
    metrics = {
        **copying(samples, train, unseen, seed=seed),
        "final_loss": float(np.mean(training["losses"][-200:])),
        "steps": training["steps"],
        "ended_by": training["ended_by"],
        "scenes": scenes,
        "weights_bytes": (out / "denoiser.safetensors").stat().st_size,
        "seconds_training": round(training["seconds"], 1),
        "seconds_total": round(time.monotonic() - began, 1),
        "seed": seed,
    }
    write_json(out / "metrics.json", metrics)
    return metrics


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--scenes", type=int, default=14_000, help="training scenes")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=None, help="time limit of the training")
    parser.add_argument("--held-out", type=int, default=1_000, help="scenes for the measures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    print(json.dumps(train_world_denoiser(**vars(parser.parse_args(argv))), indent=2))


if __name__ == "__main__":
    main()
