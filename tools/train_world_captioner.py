"""Train the simulated world's caption model: ``python tools/train_world_captioner.py --out DIR``.

A GPT-2 architecture of some two million parameters with its own byte-level BPE writes on from a prefix made of an
embedding of the world's CLIP. It sees scenes of :func:`neuroenc.data.simulate_world` as image embeddings, as the text
embeddings of their captions, or both, each centred on its own mean, with Gaussian noise. Scenes of another seed then
say how good it is, beside captions of the wrong scenes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import ConfigError
from neuroenc._core.files import write_json
from neuroenc._core.progress import progress
from neuroenc._core.provenance import provenance
from neuroenc.embedding import ImageEmbedder, TextEmbedder, prepare

__all__ = ["main", "train_world_captioner"]

# As for the world's CLIP: training scenes far from those of tests and demos, and the same held-out scenes.
_TRAIN_SEED, _HELD_OUT_SEED = 10_000_000, 1_000_003
SOURCES = ("image", "text", "both")


def _scenes(n: int, seed: int, sources: str, clip: str, device: str, show: bool) -> dict[str, Any]:
    """Embeddings of scenes and of their captions, and the captions; images are not kept."""
    from neuroenc.data.simulate import simulate_world

    options: dict[str, Any] = {"device": device, "cache": False, "progress": False}
    images, tables = [], []
    captions: list[tuple[str, ...]] = []
    embedder = ImageEmbedder(clip, **options)
    for start in progress(range(0, n, 500), desc="scenes", show=show):
        world = simulate_world(min(500, n - start), seed=seed + start // 500)
        images.append(embedder.embed(world).values)
        tables.append(world.table)
        captions.extend(world.captions or ())
    found: dict[str, Any] = {"image": np.concatenate(images), "captions": captions, "tables": tables}
    if sources != "image":
        flat = [c for several in captions for c in several]
        different = list(dict.fromkeys(flat))
        vectors = TextEmbedder(clip, **options).embed(different).values
        place = {c: k for k, c in enumerate(different)}
        found["text"] = vectors[[place[c] for c in flat]]
    return found


def train_world_captioner(
    out: str | Path,
    *,
    scenes: int = 14_000,
    sources: str = "both",
    noise: float = 0.02,
    epochs: int = 2,
    minutes: float = 90.0,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    width: int = 192,
    layers: int = 4,
    prefix_length: int = 4,
    held_out: int = 1_000,
    clip: str = "world",
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    checkpoint: str | Path | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Train, write a folder for ``PrefixDecoder.load``, and measure it on held-out scenes.

    Parameters
    ----------
    out : path
        Folder for the decoder in float16, and ``metrics.json``.
    scenes : int
    sources : {"both", "image", "text"}
        What the prefix is made of in training.
    noise : float
        Standard deviation a dimension, on centred embeddings of unit norm.
    epochs, batch_size, learning_rate : int, int, float
        AdamW with warm-up and a cosine to zero.
    minutes : float
        Time limit of the training itself, at which the cosine ends (``metrics["ended_by"]``).
    width, layers, prefix_length : int
        Of the language model, and of the prefix.
    held_out : int
        Scenes of another seed for the measures.
    clip : str
        Model of :class:`neuroenc.embedding.ImageEmbedder`.
    seed : int
    device : str
    threads : int, optional
        Threads of torch.
    checkpoint : path, optional
        Folder from which a training that was killed goes on.
    show : bool
        Progress bars.

    Returns
    -------
    dict
        The content of ``metrics.json``.
    """
    if sources not in SOURCES:
        raise ConfigError(f"sources={sources!r} is not legal; legal: {', '.join(SOURCES)}.")
    prepare()
    import torch

    from neuroenc.captions import make_language_model
    from neuroenc.captions.decoding._prefix import PrefixDecoder
    from neuroenc.captions.decoding._prefix_training import train_prefix

    if threads:
        torch.set_num_threads(threads)
    began = time.monotonic()
    found = _scenes(scenes, _TRAIN_SEED + 1_000 * seed, sources, clip, device, show)
    captions = found["captions"]
    embedded = time.monotonic()

    lm, tokenizer = make_language_model(
        [c for several in captions for c in several], width=width, layers=layers, seed=seed
    )
    dim = found["image"].shape[1]
    decoder = PrefixDecoder(
        lm, tokenizer, dim, prefix_length=prefix_length, normalise=True, centre=True, stop=".", seed=seed, device=device
    )
    inputs, texts = [], []
    if sources != "text":
        inputs.append(decoder.inputs(found["image"], unit_rows(found["image"]).mean(axis=0)))
        texts.extend(captions)
    if sources != "image":
        inputs.append(decoder.inputs(found["text"], unit_rows(found["text"]).mean(axis=0)))
        texts.extend([c] for several in captions for c in several)
        decoder.text_direction = unit_rows(found["text"].astype(np.float64)).mean(axis=0)
    # Voxels are projected onto images: their mean is what decoding subtracts.
    decoder.mean = unit_rows(found["image"].astype(np.float64)).mean(axis=0)
    training = train_prefix(
        decoder,
        np.concatenate(inputs),
        texts,
        source="image",
        prepared=True,
        noise=noise,
        epochs=epochs,
        minutes=minutes,
        batch_size=batch_size,
        lr=learning_rate,
        weight_decay=0.05,
        warmup=200,
        schedule="cosine",
        clip=1.0,
        seed=seed,
        checkpoint=checkpoint,
        progress=show,
    )
    out = Path(out)
    decoder.save(out, dtype="float16")
    size = (out / "prefix.safetensors").stat().st_size
    # What is measured is what was written, in float16.
    metrics = {
        **measure(PrefixDecoder.load(out, device=device), held_out, seed, clip, device, show),
        "final_loss": float(training.losses[-50:].mean()),
        "steps": training.steps,
        "ended_by": training.ended_by,
        "scenes": scenes,
        "sources": sources,
        "noise": noise,
        "batch_size": batch_size,
        "parameters": sum(p.numel() for part in (decoder.lm, decoder.mapping) for p in part.parameters()),
        "vocabulary": len(tokenizer),
        "weights_bytes": size,
        "seconds_embedding": round(embedded - began, 1),
        "seconds_training": round(training.seconds, 1),
        "seconds_total": round(time.monotonic() - began, 1),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "provenance": provenance(step="train_world_captioner", seed=seed, scenes=scenes, learning_rate=learning_rate),
    }
    write_json(out / "metrics.json", metrics)
    return metrics


def measure(
    decoder: Any, held_out: int = 1_000, seed: int = 0, clip: str = "world", device: str = "cpu", show: bool = False
) -> dict[str, Any]:
    """Measures of :func:`evaluate_world_captions` on held-out scenes; ``shuffled_*`` against the wrong scenes."""
    import pandas as pd

    from world_caption_metrics import evaluate_world_captions

    found = _scenes(held_out, _HELD_OUT_SEED + seed, "image", clip, device, show)
    table = pd.concat(found["tables"], ignore_index=True)
    captions = [c[0].text for c in decoder.generate(found["image"], top=1)]
    right = evaluate_world_captions(captions, table, found["captions"])
    order = np.roll(np.arange(len(captions)), len(captions) // 2)
    wrong = evaluate_world_captions([captions[k] for k in order], table, found["captions"])
    kept = ("named_family", "named_member", "bleu4")
    return {**right, **{f"shuffled_{k}": wrong[k] for k in kept}, "examples": captions[:5]}


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--scenes", type=int, default=14_000, help="training scenes")
    parser.add_argument("--sources", choices=SOURCES, default="both")
    parser.add_argument("--noise", type=float, default=0.02)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=90.0, help="time limit of the training")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prefix-length", type=int, default=4)
    parser.add_argument("--held-out", type=int, default=1_000, help="scenes for the measures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--checkpoint", type=Path, default=None, help="folder to go on from after a kill")
    found = parser.parse_args(argv)
    print(json.dumps(train_world_captioner(**vars(found)), indent=2))


if __name__ == "__main__":
    main()
