"""Prompts for the simulated world, and measures of a CLIP on scenes that it was not trained on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

__all__ = ["brief_captions", "evaluate_world_clip"]

_HELD_OUT_SEED = 1_000_003
_BRIEF = ("a photo of {}", "a picture of {}", "an image of {}", "{}")


def _article(phrase: str) -> str:
    return phrase if phrase == "food" else f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def brief_captions(table: Any) -> list[tuple[str, ...]]:
    """Captions of the main object alone, by its name and by its family's.

    Parameters
    ----------
    table : pandas.DataFrame
        Latents of scenes (columns ``family`` and ``objects``).

    Returns
    -------
    list of tuple of str
        Eight a scene.

    Examples
    --------
    >>> import pandas as pd
    >>> row = {"family": "food", "objects": '[{"family": "food", "member": "apple", "strength": 1.0}]'}
    >>> brief_captions(pd.DataFrame([row]))[0][:2]
    ('a photo of an apple', 'a picture of an apple')
    """
    found = []
    for family, text in zip(table["family"], table["objects"], strict=True):
        objects = json.loads(text)
        main = next((o for o in objects if o["family"] == family), objects[0])
        names = (main["member"], main["member"] if family == "none" else family)
        found.append(tuple(form.format(_article(name)) for name in names for form in _BRIEF))
    return found


def evaluate_world_clip(
    model: str = "world", *, held_out: int = 2_000, seed: int = 0, device: str = "cpu", show: bool = False
) -> dict[str, float]:
    """Zero-shot family accuracy, caption retrieval and member probes on scenes that were not trained on.

    Parameters
    ----------
    model : str
        Name for :class:`neuroenc.embedding.ImageEmbedder`.
    held_out : int
        Number of scenes.
    seed : int
        Seed of the training that is being measured; the scenes have another.
    device : str
    show : bool
        Progress bars.

    Returns
    -------
    dict of float
        ``zero_shot_family``: share of scenes with a family whose nearest family prompt is the main object's
        family; ``zero_shot_family_single``: the same where a scene holds one family only;
        ``zero_shot_family_present``: share whose nearest prompt is any family in the scene;
        ``retrieval_r1, retrieval_r5``: share of 500 images whose own caption (the first of four) is the
        nearest, or among the five nearest, of the 500; ``retrieval_text_r1``: the same from the caption;
        ``member_probe_r``: mean Pearson r of ridge predictions of the 25 members' strengths from raw image
        embeddings, second half from the first; ``norm_mean, norm_cv``: of raw image embeddings.
    """
    from neuroenc.data.simulate import FAMILIES, simulate_world
    from neuroenc.embedding._embedders import ImageEmbedder, TextEmbedder

    world = simulate_world(held_out, seed=_HELD_OUT_SEED + seed)
    options: dict[str, Any] = {"device": device, "cache": False, "progress": show}
    raw = ImageEmbedder(model, **options).embed(world).values
    text = TextEmbedder(model, normalise=True, **options)
    norm = np.linalg.norm(raw, axis=1)
    unit = raw / norm[:, None]

    prompts = [form.format(_article(f)) for f in FAMILIES for form in _BRIEF]
    classes = text.embed(prompts).values.reshape(len(FAMILIES), len(_BRIEF), -1).mean(1)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    family = world.table["family"].to_numpy()
    some, single = family != "none", world.table["n_families"].to_numpy() == 1
    guess = (unit @ classes.T).argmax(1)
    right = np.array(FAMILIES)[guess] == family
    present = world.table[list(FAMILIES)].to_numpy()[np.arange(len(guess)), guess] > 0

    n, captions_of = min(500, held_out), world.captions
    assert captions_of is not None
    captions = text.embed([c[0] for c in captions_of[:n]], ids=world.ids[:n].tolist()).values
    similarity = unit[:n] @ captions.T
    # Ties count against: identical captions share one vector.
    rank = (similarity >= np.diag(similarity)[:, None]).sum(1)
    rank_text = (similarity >= np.diag(similarity)[None]).sum(0)

    members = world.table.filter(like="member_").to_numpy(dtype=float)
    half = held_out // 2
    x = raw - raw[:half].mean(0)
    gram = x[:half].T @ x[:half]
    ridge = gram + 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
    predicted = x[half:] @ np.linalg.solve(ridge, x[:half].T @ (members[:half] - members[:half].mean(0)))
    probe = []
    for p, m in zip(predicted.T, members[half:].T, strict=True):
        if m.std() > 0:
            probe.append(np.corrcoef(p, m)[0, 1] if p.std() > 0 else 0.0)
    return {
        "zero_shot_family": float(right[some].mean()),
        "zero_shot_family_single": float(right[single].mean()),
        "zero_shot_family_present": float(present[some].mean()),
        "retrieval_r1": float((rank <= 1).mean()),
        "retrieval_r5": float((rank <= 5).mean()),
        "retrieval_text_r1": float((rank_text <= 1).mean()),
        "retrieval_n": float(n),
        "member_probe_r": float(np.mean(probe)),
        "norm_mean": float(norm.mean()),
        "norm_cv": float(norm.std() / norm.mean()),
        "held_out": float(held_out),
    }
