"""The simulated world: rendered scenes with captions and the latents they were made from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import ConfigError
from neuroenc.data._stimuli import Stimuli
from neuroenc.data.simulate._captions import captions
from neuroenc.data.simulate._lexicon import FAMILIES, MEMBERS
from neuroenc.data.simulate._scene import Scene, render, sample_scene


def _row(scene: Scene) -> dict[str, Any]:
    row: dict[str, Any] = {"n_objects": len(scene.objects)}
    strengths = {f: 0.0 if (o := scene.of(f)) is None else o.strength for f in FAMILIES}
    best = max(strengths, key=lambda f: strengths[f])
    if scene.objects[0].family in strengths:
        best = scene.objects[0].family
    row["family"] = best if strengths[best] > 0 else "none"
    row["n_families"] = sum(s > 0 for s in strengths.values())
    row.update({k: v for k, v in vars(scene).items() if k != "objects"})
    for f in FAMILIES:
        o = scene.of(f)
        row[f] = strengths[f]
        row[f"{f}_x"], row[f"{f}_y"], row[f"{f}_size"] = (np.nan,) * 3 if o is None else (o.x, o.y, o.size)
    present = {o.member: o.strength for o in scene.objects}
    row.update({f"member_{m}": present.get(m, 0.0) for f in FAMILIES for m in MEMBERS[f]})
    row["objects"] = json.dumps([vars(o) for o in scene.objects])
    return row


def simulate_world(n: int, *, size: int = 64, seed: int = 0, prefix: str = "scene") -> Stimuli:
    """Rendered scenes of one to three objects, each with four captions and its latent description.

    Scene ``i`` depends on ``seed`` and ``i`` alone, so a smaller world is a prefix of a larger one, and the
    same scene can be had at another size. Objects belong to one of five families (:data:`FAMILIES`) or are
    neutral; a scene holds at most one object of each family. The first object is the main one and is
    larger. Families are drawn nearly independently (correlation of presence about -0.1, since a scene has
    room for three objects).

    Parameters
    ----------
    n : int
        Number of scenes.
    size : int
        Width and height in pixels, 32 or more.
    seed : int
        Seed of the world. Different seeds give different scenes.
    prefix : str
        Ids are ``{prefix}-{seed}-{i:06d}``.

    Returns
    -------
    Stimuli
        ``images`` uint8 (n, size, size, 3); ``captions``: four each; ``table`` columns:

        - ``n_objects``, ``n_families`` (int), ``family``: family of the main object, of the strongest
          object where the main one is neutral, ``"none"`` where there is no other;
        - ``background``, ``background_colour``, ``contrast`` (gain about the mean), ``brightness`` (grey
          levels), ``orientation`` (degrees, of the grating's normal, clockwise from right), ``frequency``
          (cycles per picture), ``grating`` (amplitude, 0 = none), ``colour_cast``;
        - per family, ``face``, ... : visual strength (0 = absent, else 0.5 to 1, growing with size), and
          ``face_x``, ``face_y``, ``face_size``: position from the centre (y up) and size in fractions of
          the picture's width, NaN where absent;
        - per member, ``member_man``, ... : the strength of that member;
        - ``objects``: JSON list of all objects, neutral ones included.

    Raises
    ------
    ConfigError
        ``n`` below 1 or ``size`` below 32.

    Examples
    --------
    >>> world = simulate_world(3, seed=1)
    >>> world.images.shape, len(world.captions[0])
    ((3, 64, 64, 3), 4)
    >>> bool((simulate_world(2, seed=1).images == world.images[:2]).all())
    True
    """
    if n < 1 or size < 32:
        raise ConfigError(f"n={n} scenes of size={size} pixels: n must be at least 1 and size at least 32.")
    ids = np.array([f"{prefix}-{seed}-{i:06d}" for i in range(n)])
    images = np.empty((n, size, size, 3), dtype=np.uint8)
    texts, rows = [], []
    for i in range(n):
        scene = sample_scene(np.random.default_rng([seed, i, 0]))
        images[i] = render(scene, size)
        texts.append(captions(scene, np.random.default_rng([seed, i, 1])))
        rows.append(_row(scene))
    table = pd.DataFrame(rows, index=pd.Index(ids, name="stimulus"))
    return Stimuli(ids, images, tuple(texts), table, source=f"simulated world, seed {seed}", licence="BSD-3-Clause")
