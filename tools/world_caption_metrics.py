"""How good captions of the simulated world's scenes are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["evaluate_world_captions"]


def evaluate_world_captions(captions: Sequence[str], table: Any, references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Shares of captions that name what is in their scene, and their overlap with its true captions.

    Parameters
    ----------
    captions : sequence of str (n,)
    table : pandas.DataFrame
        Latents of the scenes (``family, n_families, objects``).
    references : sequence of sequences of str

    Returns
    -------
    dict
        Over scenes with a family: ``named_family`` the main object's family is named, ``only_present`` no family is
        named that is absent; over those with one family ``named_family_single``; ``named_member`` the main object is
        named; ``bleu4`` (0 to 1, by sacrebleu); ``in_references`` the caption is one of the scene's own; ``different``
        share of different captions; ``n``.
    """
    from caption_metrics import bleu4
    from neuroenc.data.simulate import families_in_caption, names_member

    family = table["family"].to_numpy()
    objects = [json.loads(o) for o in table["objects"]]
    some, single = family != "none", (table["n_families"] == 1).to_numpy()
    said = [families_in_caption(c) for c in captions]
    named = np.array([f in s for f, s in zip(family, said)])
    truth = [{o["family"] for o in scene} for scene in objects]
    honest = np.array([s <= t for s, t in zip(said, truth)])
    main = [next((o["member"] for o in scene if o["family"] == f), None) for scene, f in zip(objects, family)]
    right = np.array([m is not None and names_member(c, m) for c, m in zip(captions, main)])
    own = [c.lower() in {r.lower() for r in rs} for c, rs in zip(captions, references)]
    return {
        "named_family": float(named[some].mean()),
        "named_family_single": float(named[some & single].mean()) if (some & single).any() else float("nan"),
        "named_member": float(right[some].mean()),
        "only_present": float(honest.mean()),
        "bleu4": bleu4(captions, references) / 100,
        "in_references": float(np.mean(own)),
        "different": len(set(captions)) / len(captions),
        "n": len(captions),
    }
