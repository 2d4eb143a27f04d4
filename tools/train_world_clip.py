"""Train the simulated world's own CLIP: ``python tools/train_world_clip.py --out DIR``.

Scenes of :func:`neuroenc.data.simulate_world` and their captions are all that it sees. The loss is the
symmetric contrastive one of CLIP over batches of B pairs,

    L = 1/2 (CE(s U V^T, I) + CE(s V U^T, I)),

with unit vectors U, V (B, feature) of images and captions and a learned scale s; equal captions in a batch count
as one, right for all its images. At each step a scene comes with one of its captions and, at a lower weight, with
a brief one that names its main object or that object's family only ("a photo of a cake", "a picture of food"), as
people do. Held-out scenes then say how good it is.

References
----------
Radford et al. (2021), Learning transferable visual models from natural language supervision.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc._core.device import resolve_device
from neuroenc._core.files import write_json
from neuroenc._core.progress import progress
from neuroenc._core.provenance import provenance
from neuroenc.embedding import info_nce
from neuroenc.embedding._packages import prepare
from world_clip_files import (
    model_config,
    world_words,
    write_config,
    write_tokenizer,
    write_weights,
)
from world_clip_metrics import brief_captions, evaluate_world_clip

__all__ = ["main", "train_world_clip"]

# Weight of the loss against brief captions.
_BRIEF_SHARE = 0.3
_SHIFT = 4


def _augment(batch: Any, rng: np.random.Generator) -> Any:
    """Shift by a few pixels and change contrast and brightness; float32 in 0..1, never mirrored (captions say
    left and right)."""
    import torch

    n, _, height, width = batch.shape
    padded = torch.nn.functional.pad(batch, (_SHIFT,) * 4, mode="replicate")
    dy, dx = (torch.from_numpy(rng.integers(0, 2 * _SHIFT + 1, n)) for _ in range(2))
    rows = (dy[:, None] + torch.arange(height)).to(batch.device)
    columns = (dx[:, None] + torch.arange(width)).to(batch.device)
    index = torch.arange(n, device=batch.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (n, 1, 1, 1)).astype(np.float32)).to(batch.device)
    lift = torch.from_numpy(rng.uniform(-0.05, 0.05, (n, 1, 1, 1)).astype(np.float32)).to(batch.device)
    mean = moved.mean((1, 2, 3), keepdim=True)
    return ((moved - mean) * gain + mean + lift).clamp(0, 1)


def _token_table(texts: list[tuple[str, ...]], tokenizer: Any) -> np.ndarray:
    """Tokens int64 (scene, caption, position); scenes with fewer captions repeat theirs."""
    most = max(len(t) for t in texts)
    flat = [t[k % len(t)] for t in texts for k in range(most)]
    unique = sorted(set(flat))
    position = {text: n for n, text in enumerate(unique)}
    tokens = tokenizer(unique).numpy()
    return np.asarray(tokens[[position[t] for t in flat]].reshape(len(texts), most, -1))


def _encode_text(model: Any, tokens: Any) -> Any:
    """``model.encode_text(tokens, normalize=True)`` without the padding behind the longest text, which the causal
    mask hides from everything before it."""
    import torch

    end = tokens.argmax(dim=-1)
    length = int(end.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    x = x[torch.arange(len(x), device=x.device), end] @ model.text_projection
    return torch.nn.functional.normalize(x, dim=-1)


def _contrast(model: Any, image: Any, tokens: Any, scale: Any) -> Any:
    """CLIP's loss, in which equal captions are one caption: all their images are right for it."""
    import torch

    unique, which = torch.unique(tokens, dim=0, return_inverse=True)
    return info_nce(image, _encode_text(model, unique), which, temperature=1 / scale, symmetric=True)


def _normaliser(device: str) -> Any:
    import torch

    from world_clip_files import _MEAN, _STD

    mean = torch.tensor(_MEAN, device=device)[:, None, None]
    std = torch.tensor(_STD, device=device)[:, None, None]
    return lambda x: (x - mean) / std


def train_world_clip(
    out: str | Path,
    *,
    scenes: int = 14_000,
    steps: int = 3_600,
    minutes: float = 15.0,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    held_out: int = 2_000,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    vision: dict[str, Any] | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Train, write an open_clip folder, and measure it on held-out scenes.

    Parameters
    ----------
    out : path
        Folder for ``open_clip_config.json, open_clip_model.safetensors, tokenizer.json, metrics.json``.
    scenes : int
        Training scenes, rendered once and kept in memory (uint8, 12 kB each).
    steps, batch_size, learning_rate : int, int, float
        AdamW with warm-up and a cosine to zero.
    minutes : float
        Time limit of the training itself: on a slower machine the cosine ends then instead, and the result
        depends on the machine (``metrics["ended_by"]`` says which it was).
    held_out : int
        Scenes of another seed for the measures.
    seed : int
        World, initial weights, order, captions and augmentation.
    device : str
    threads : int, optional
        Threads of torch.
    vision : dict, optional
        open_clip's vision_cfg in place of the default.
    show : bool
        Progress bars.

    Returns
    -------
    dict
        The content of ``metrics.json``.
    """
    prepare()
    import open_clip
    import torch

    from neuroenc.data.simulate import simulate_world

    if threads:
        torch.set_num_threads(threads)
    began, cpu = time.monotonic(), time.process_time()
    out = Path(out)
    device = resolve_device(device)
    out.mkdir(parents=True, exist_ok=True)
    config = model_config(write_tokenizer(out, world_words()), vision)
    write_config(out, config)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")

    parts = []
    for start in progress(range(0, scenes, 500), desc="rendering", show=show):
        # Seeds of the pieces are far from those of tests and demos.
        parts.append(simulate_world(min(500, scenes - start), seed=10_000_000 + 1_000 * seed + start // 500))
    images = torch.from_numpy(np.concatenate([p.images for p in parts])).permute(0, 3, 1, 2).contiguous()
    captions = _token_table([c for p in parts for c in p.captions or ()], tokenizer)
    brief = _token_table([c for p in parts for c in brief_captions(p.table)], tokenizer)
    rendered = time.monotonic()

    torch.manual_seed(seed)
    model = open_clip.CLIP(**config).to(device)
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-6)
    normalise = _normaliser(device)
    rng = np.random.default_rng(seed)

    model.train()
    step, done, average, losses = 0, 0.0, float("nan"), []
    order = rng.permutation(scenes)
    bar = progress(desc="training", total=steps, show=show)
    while done < 1.0:
        spent = (time.monotonic() - rendered) / (60 * minutes)
        done = max((step + 1) / steps, spent)
        rate = learning_rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        if len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(scenes)])
        chosen, order = np.sort(order[:batch_size]), order[batch_size:]
        full = captions[chosen, rng.integers(0, captions.shape[1], len(chosen))]
        short = brief[chosen, rng.integers(0, brief.shape[1], len(chosen))]
        batch = images[torch.from_numpy(chosen)].to(device).float() / 255
        batch = normalise(_augment(batch, rng))
        image = model.encode_image(batch, normalize=True)
        scale = model.logit_scale.exp()
        loss = sum(
            weight * _contrast(model, image, torch.from_numpy(tokens).to(device), scale)
            for weight, tokens in ((1 - _BRIEF_SHARE, full), (_BRIEF_SHARE, short))
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(float(loss.detach()))
        average = float(np.mean(losses[-50:]))
        step += 1
        bar.update(1)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{average:.3f}")
    bar.close()
    trained = time.monotonic()

    path = write_weights(out, model)
    metrics = {
        **evaluate_world_clip(f"local-dir:{out}", held_out=held_out, seed=seed, device=device, show=show),
        "final_loss": average,
        "steps": step,
        "ended_by": "steps" if step == steps else "minutes",
        "scenes": scenes,
        "batch_size": batch_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_bytes": path.stat().st_size,
        "seconds_rendering": round(rendered - began, 1),
        "seconds_training": round(trained - rendered, 1),
        "seconds_cpu": round(time.process_time() - cpu, 1),
        "seconds_total": round(time.monotonic() - began, 1),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "provenance": provenance(step="train_world_clip", seed=seed, scenes=scenes, learning_rate=learning_rate),
    }
    write_json(out / "metrics.json", metrics)
    return metrics


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--scenes", type=int, default=14_000, help="training scenes")
    parser.add_argument("--steps", type=int, default=3_600, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs in a batch")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--minutes", type=float, default=15.0, help="time limit of the training")
    parser.add_argument("--held-out", type=int, default=2_000, help="scenes for the measures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    found = parser.parse_args(argv)
    print(json.dumps(train_world_clip(**vars(found)), indent=2))


if __name__ == "__main__":
    main()
