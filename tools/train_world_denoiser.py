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

from neuroenc._core.checks import make_rng
from neuroenc._core.errors import DataError
from neuroenc._core.files import write_json
from neuroenc._core.progress import progress
from neuroenc.embedding import ImageEmbedder
from neuroenc.retrieval import as_bank, top_k

__all__ = ["copying", "main", "synthetic_weights", "train_world_denoiser"]

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


def synthetic_weights(bank: Any, n: int, seed: int = 0) -> np.ndarray:
    """Unit-norm weights (n, d) of the denoiser's prior for the images of a bank in memory.

    Examples
    --------
    >>> found = synthetic_weights(np.eye(4), 3)
    >>> found.shape, np.linalg.norm(found, axis=1).round(3).tolist()
    ((3, 4), [1.0, 1.0, 1.0])
    """
    import torch

    from neuroenc.captions.projection._denoiser_model import WeightPrior

    rows = torch.from_numpy(np.array(bank, dtype=np.float32))
    prior = WeightPrior(rows / rows.norm(dim=1, keepdim=True))
    return prior.draw(n, torch.Generator().manual_seed(seed)).numpy()


def copying(
    samples: Any, train: Any, held_out: Any, *, seed: int = 0, max_memory: str | int | None = None
) -> dict[str, float]:
    r"""Memorisation check: are samples nearer to the denoiser's training images than to others?

    Distances are :math:`\min_k \|x - m_k\|` of unit vectors, to sets of equal size: as many training images, drawn at
    random, as there are held-out ones. A denoiser that learned the distribution is as near to both; one that keeps its
    images is at distance 0 of one of them.

    Parameters
    ----------
    samples : array (n, d)
    train, held_out : see :func:`neuroenc.retrieval.as_bank`
        Images that were fitted, and images that were not.
    seed : int
        Of the sample of training images.
    max_memory : str, int or None

    Returns
    -------
    dict
        ``to_train, to_held_out``: median distance of a draw to the sets of equal size; ``nearer_to_train``: share of
        draws that are nearer to the training set's (0.5: no copying); ``to_all_train``: median distance to all training
        images, beside ``held_out_to_all_train``, that of held-out images; ``copies``: share of draws within a tenth of
        the latter.

    Raises
    ------
    DataError
        Fewer training images than held-out ones, streams, or what the search refuses.

    References
    ----------
    Meehan, Chaudhuri, Dasgupta. A non-parametric test to detect data-copying in generative models. AISTATS 2020.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> images = rng.standard_normal((600, 8))
    >>> copying(images[:200], images[:400], images[400:])["copies"]
    1.0
    """
    from neuroenc.captions.projection._project import chord, gather_rows

    x = np.asarray(samples, dtype=np.float64)
    fitted, others = (as_bank(bank).again("each bank is read several times") for bank in (train, held_out))
    n_fitted, n_others = int(fitted.n or 0), int(others.n or 0)
    if n_fitted < n_others:
        raise DataError(f"{n_fitted} training and {n_others} held-out images; legal: at least as many training ones.")
    at = np.sort(make_rng(seed).choice(n_fitted, n_others, replace=False))
    equal = as_bank(gather_rows(fitted, at, max_memory))

    def distance(rows: np.ndarray, bank: Any) -> np.ndarray:
        return chord(top_k(rows, bank, 1, max_memory=max_memory)[0][:, 0])

    to_train, to_held_out, to_all = distance(x, equal), distance(x, others), distance(x, fitted)
    unseen = gather_rows(others, np.arange(n_others), max_memory)
    natural = float(np.median(distance(unseen, fitted)))
    nearer = np.mean(np.where(to_train == to_held_out, 0.5, to_train < to_held_out))
    return {
        "to_train": float(np.median(to_train)),
        "to_held_out": float(np.median(to_held_out)),
        "nearer_to_train": float(nearer),
        "to_all_train": float(np.median(to_all)),
        "held_out_to_all_train": natural,
        "copies": float(np.mean(to_all < 0.1 * natural)),
    }


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
    from neuroenc.captions import ConceptDenoiser

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
