"""The simulated world: rendered scenes with captions and the latents they were made from."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data._stimuli import Stimuli
from neuroenc.data.simulate._lexicon import FAMILIES, MEMBERS, WORLD, all_members, member
from neuroenc.data.simulate._scene import BACKGROUNDS, Scene, SceneObject, render, sample_scene

_SIZES = {"small": (0.0, 0.4), "large": (0.66, 9.0)}
_FACE_FORMS = ("{a}", "{a}", "the face of {a}", "a portrait of {a}")
_SMILING = "smiling"
_GROUNDS, _SIDES, _PLACES, _TEMPLATES = (WORLD[k] for k in ("grounds", "sides", "places", "templates"))


def _agree(text: str) -> str:
    """Make every indefinite article agree with the word after it."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _noun_phrase(o: SceneObject, rng: np.random.Generator) -> str:
    kind = member(o.member)
    phrase = str(rng.choice(kind.phrases)).format(c=o.colour)
    if o.smiling and rng.random() < 0.6:
        phrase = f"{_SMILING} {phrase}"
    if kind.sized and rng.random() < 0.4:
        for word, (low, high) in _SIZES.items():
            if low <= o.size < high:
                phrase = f"{word} {phrase}"
    form = str(rng.choice(_FACE_FORMS)) if o.family == "face" else "{a}"
    return form.format(a=f"a {phrase}")


def _side(dx: float, dy: float, margin: float) -> str:
    if max(abs(dx), abs(dy)) < margin:
        return "near"
    if abs(dx) >= abs(dy):
        return "right" if dx > 0 else "left"
    return "above" if dy > 0 else "below"


def captions(scene: Scene, rng: np.random.Generator, n: int = 4) -> tuple[str, ...]:
    """``n`` different sentences; each names every object of the scene that belongs to a family."""
    place = scene.of("place")
    things = [o for o in scene.objects if o is not place]
    templates = _TEMPLATES[f"{len(things)} and a place" if place is not None else f"{len(things)}"]
    found: list[str] = []
    for template in rng.permutation(templates):
        parts = {"g": str(rng.choice(_GROUNDS[scene.background])).format(c=scene.background_colour)}
        for key, o in zip("abc", things):
            parts[key] = _noun_phrase(o, rng)
            parts["w" + key] = _PLACES[_side(o.x, o.y, 0.1)]
        if len(things) > 1:
            a, b = things[:2]
            side = _side(a.x - b.x, a.y - b.y, 0.1)
            parts["ab"] = str(rng.choice(_SIDES[side if rng.random() < 0.7 else "near"]))
        if place is not None:
            parts["p"] = _noun_phrase(place, rng)
            parts["at"] = f"{rng.choice(member(place.member).where)} {parts['p']}"
        sentence = _agree(str(template).format(**parts))
        found.append(sentence[0].upper() + sentence[1:])
        if len(found) == n:
            break
    return tuple(found)


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption of the simulated world can hold, lower case, sorted.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> "banana" in vocabulary(), len(vocabulary()) < 250
    (True, True)
    """
    texts = ["a an", _SMILING, *_FACE_FORMS, *_SIZES, *_PLACES.values()]
    for group in (*_GROUNDS.values(), *_SIDES.values(), *_TEMPLATES.values(), *BACKGROUNDS.values()):
        texts.extend(group)
    for kind in all_members():
        texts.extend((*kind.phrases, *kind.colours, *kind.where))
    bare = re.sub(r"\{\w+\}", " ", " ".join(texts)).lower()
    return tuple(sorted(set(re.findall(r"[a-z]+", bare))))


#: Least share of a cell that an object must cover to be named there.
_COVERED = 0.25


def describe_cells(stimuli: Stimuli, grid: tuple[int, int] = (8, 8)) -> pd.DataFrame:
    """Name the object that covers most of each cell, taking objects as squares.

    As in the pictures, smaller objects stand in front of larger ones, and all of them in front of a place.

    Parameters
    ----------
    stimuli : Stimuli
        Of `simulate_world`, with its latents.
    grid : (int, int)
        Rows and columns, row 0 at the top.

    Returns
    -------
    DataFrame
        ``stimulus, row, column, caption``: a noun phrase with article and colour. Cells that no object covers by a
        quarter are left out.

    Raises
    ------
    DataError
        The stimuli carry no latents.
    ConfigError
        A grid without cells.

    Examples
    --------
    >>> from neuroenc.data.simulate import simulate_world
    >>> bool(describe_cells(simulate_world(3), (4, 4))["caption"].str.startswith("a").all())
    True
    """
    if stimuli.table is None or "objects" not in stimuli.table:
        raise DataError(
            f"stimuli from {stimuli.source!r} have no latents (a column 'objects'). Next step: a table of captions "
            "of your own, with stimulus, row, column, caption."
        )
    height, width = int(grid[0]), int(grid[1])
    if height < 1 or width < 1:
        raise ConfigError(f"grid={tuple(grid)} must be a positive number of rows and of columns.")
    # Edges of the cells as positions from the centre, y up as in the latents.
    left, top = np.arange(width) / width - 0.5, 0.5 - np.arange(height) / height
    found: dict[str, list] = {"stimulus": [], "row": [], "column": [], "caption": []}
    for name, text in zip(stimuli.ids, stimuli.table["objects"]):
        objects = sorted(json.loads(text), key=lambda o: (o["family"] == "place", o["size"]))
        free = np.ones((height, width))
        best, who = np.zeros((height, width)), np.full((height, width), -1)
        for number, o in enumerate(objects):
            x, y, half = o["x"], o["y"], o["size"] / 2
            across = np.clip(np.minimum(left + 1 / width, x + half) - np.maximum(left, x - half), 0, None) * width
            down = np.clip(np.minimum(top, y + half) - np.maximum(top - 1 / height, y - half), 0, None) * height
            cover = np.minimum(down[:, None] * across, free)
            free = free - cover
            better = cover > best
            best[better], who[better] = cover[better], number
        phrases = [_agree("a " + member(o["member"]).phrases[0].format(c=o["colour"])) for o in objects]
        rows, columns = np.nonzero(best >= _COVERED)
        found["stimulus"].extend([str(name)] * len(rows))
        found["row"].extend(rows.tolist())
        found["column"].extend(columns.tolist())
        found["caption"].extend(phrases[k] for k in who[rows, columns])
    return pd.DataFrame(found)


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
