"""Latents of one scene and the picture they give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from neuroenc.data.simulate._draw import Pen, draw_figure
from neuroenc.data.simulate._lexicon import COLOURS, FAMILIES, MEMBERS, NEUTRAL, WORLD, member

#: Backgrounds and the colours that they come in.
BACKGROUNDS: dict[str, tuple[str, ...]] = WORLD["backgrounds"]
_SKIES, _FLATS, _CASTS = (WORLD[k] for k in ("skies", "flats", "casts"))


@dataclass(frozen=True)
class SceneObject:
    """One object: positions from the picture's centre, y up, and size, in fractions of its width."""

    family: str
    member: str
    colour: str
    x: float
    y: float
    size: float
    strength: float
    smiling: bool = False
    look: int = 0
    mirror: bool = False


@dataclass(frozen=True)
class Scene:
    """Everything that a picture and its captions are made from; the main object stands first."""

    objects: tuple[SceneObject, ...]
    background: str
    background_colour: str
    contrast: float
    brightness: float
    orientation: float
    frequency: float
    grating: float
    colour_cast: str

    def of(self, family: str) -> SceneObject | None:
        """The object of a family, if there is one."""
        return next((o for o in self.objects if o.family == family), None)


def _place_objects(sizes: list[float], rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres inside the picture with the least overlap out of many tries."""
    half = np.minimum(np.array(sizes) / 2, 0.47)
    tries = rng.uniform(-1, 1, size=(48, len(sizes), 2)) * (0.49 - half)[:, None]
    if len(sizes) == 1:
        return [(float(tries[0, 0, 0]), float(tries[0, 0, 1]))]
    overlap = np.zeros(len(tries))
    for a in range(len(sizes)):
        for b in range(a):
            gap = np.abs(tries[:, a] - tries[:, b]) - 0.95 * (half[a] + half[b])
            overlap += np.prod(np.clip(-gap, 0, None), axis=1) / (4 * min(half[a], half[b]) ** 2)
    free = np.flatnonzero(overlap < 0.02)
    best = tries[free[0] if free.size else int(np.argmin(overlap))]
    return [(float(x), float(y)) for x, y in best]


def _strength(size: float, low: float, high: float) -> float:
    return float(np.clip(0.5 + 0.5 * (size - low) / (high - low), 0.5, 1.0))


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw the latents of one scene."""
    kinds = (*FAMILIES, "neutral")
    n = int(rng.choice(3, p=(0.36, 0.38, 0.26))) + 1
    main = str(rng.choice(kinds, p=(*[0.172] * 5, 0.14)))
    others = [str(k) for k in rng.permutation([k for k in kinds if k != main])[: n - 1]]
    if main == "neutral" and others and rng.random() < 0.35:
        others[0] = "neutral"
    families = [main, *others]
    names: list[str] = []
    for family in families:
        pool = [m for m in (MEMBERS[family] if family != "neutral" else NEUTRAL) if m not in names]
        names.append(str(rng.choice(pool)))
    sizes = []
    for k, family in enumerate(families):
        if family == "place":
            low, high = (0.85, 1.05) if k == 0 else (0.6, 0.8)
        elif n == 1 or families[1:] == ["place"]:
            low, high = 0.36, 0.86
        elif k == 0:
            low, high = (0.5, 0.7) if n == 2 or "place" in families else (0.48, 0.58)
        else:
            low, high = 0.32, 0.42
        sizes.append(float(rng.uniform(low, high)))
    free = [k for k, family in enumerate(families) if family != "place"]
    centres = dict(zip(free, _place_objects([sizes[k] for k in free], rng))) if free else {}
    objects = []
    for k, (family, name) in enumerate(zip(families, names)):
        if family == "place":
            x, y = float(rng.uniform(-0.2, 0.2)), 0.0
            strength = _strength(sizes[k], 0.6, 1.05)
        else:
            x, y = centres[k]
            strength = _strength(sizes[k], 0.32, 0.7)
        colour = str(rng.choice(member(name).colours))
        look = int(rng.integers(64))
        smiling, mirror = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
        smiling = smiling and name in ("man", "woman", "child")
        objects.append(SceneObject(family, name, colour, x, y, sizes[k], strength, smiling, look, mirror))
    background = str(rng.choice(list(BACKGROUNDS)))
    if "place" in families:
        background = "wall" if names[families.index("place")] == "corridor" else "sky"
    shade = str(rng.choice(BACKGROUNDS[background]))
    ranges = {"contrast": (0.6, 1.1), "brightness": (-18, 18), "orientation": (0, 180), "frequency": (3, 9)}
    numbers = {name: float(rng.uniform(*ends)) for name, ends in ranges.items()}
    grating = float(rng.uniform(0, 0.3)) if rng.random() < 0.7 else 0.0
    cast = str(rng.choice(list(_CASTS), p=(0.5, 0.25, 0.25)))
    return Scene(tuple(objects), background, shade, **numbers, grating=grating, colour_cast=cast)


def _backdrop(scene: Scene, px: int, look: int) -> Image.Image:
    y = (np.arange(px, dtype=np.float32)[:, None] + 0.5) / px - 0.5
    x = y.T
    kind, name = scene.background, scene.background_colour
    base = np.array(_SKIES[name] if kind == "sky" else _FLATS.get(name, COLOURS[name]), dtype=np.float32)
    picture = np.broadcast_to(base, (px, px, 3)).copy()
    if kind == "sky":
        picture += (45 * y + 12)[..., None]
    elif kind == "grass":
        picture[:] = (104, 164, 82)
        picture += (26 * np.sin(61 * x + 9 * np.sin(23 * y)) * np.sin(37 * y + 5 * x + look))[..., None]
    elif kind == "wall":
        floor = int(0.78 * px)
        picture[floor:] = base * 0.62
        picture[floor : floor + max(1, px // 42)] = 246
    elif kind == "road":
        picture[:] = (128, 130, 134)
        line = np.abs(x - 0.12 * y) < 0.03
        picture[line & (np.sin(24 * y + look) > -0.3)] = (244, 240, 226)
    elif kind == "wood":
        picture[:] = (176, 128, 82)
        picture += (16 * np.sin(44 * y + 3 * np.sin(5 * x + look)) - 34 * (np.mod(y + 0.5, 0.25) < 0.02))[..., None]
    if scene.grating:
        angle = np.deg2rad(scene.orientation)
        phase = 2 * np.pi * scene.frequency * (x * np.cos(angle) + y * np.sin(angle))
        picture += (150 * scene.grating * np.sin(phase + look))[..., None]
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """Picture of a scene, uint8 (size, size, 3) RGB, drawn at twice the size and averaged down."""
    px = 2 * size
    canvas = _backdrop(scene, px, scene.objects[0].look)
    draw = ImageDraw.Draw(canvas)
    place = scene.of("place")
    if place is not None:
        pen = Pen(draw, px / 2, px / 2, px / 2, place.mirror)
        draw_figure(pen, place.member, COLOURS[place.colour], place.look, size=place.size, x=place.x)
    for o in sorted(scene.objects, key=lambda o: -o.size):
        if o.family == "place":
            continue
        pen = Pen(draw, (0.5 + o.x) * px, (0.5 - o.y) * px, o.size * px / 2, o.mirror)
        draw_figure(pen, o.member, COLOURS[o.colour], o.look, o.smiling)
    picture = np.asarray(canvas.reduce(2), dtype=np.float32)
    mean = picture.mean()
    picture = mean + scene.contrast * (picture - mean) + scene.brightness
    picture *= np.array(_CASTS[scene.colour_cast], dtype=np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
