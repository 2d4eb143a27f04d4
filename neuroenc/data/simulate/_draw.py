"""Faces, bodies, words, food and neutral objects, drawn stroke by stroke as figures.toml says, and places."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import ImageColor, ImageDraw

from neuroenc.data.simulate._lexicon import WORLD

RGB = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


def shade(colour: RGB, factor: float) -> RGB:
    """Darker (factor < 1) or lighter (factor > 1) version of a colour."""
    if factor <= 1:
        r, g, b = (round(c * factor) for c in colour)
    else:
        r, g, b = (round(c + (255 - c) * (factor - 1)) for c in colour)
    return min(r, 255), min(g, 255), min(b, 255)


class Pen:
    """Draws at (x, y) pixels with half-size ``h`` pixels; ``mirror`` flips left and right."""

    def __init__(self, draw: ImageDraw.ImageDraw, x: float, y: float, h: float, mirror: bool = False) -> None:
        self.draw, self.x, self.y, self.h = draw, x, y, h
        self.m = -1 if mirror else 1

    def at(self, u: float, v: float) -> tuple[float, float]:
        return self.x + self.m * u * self.h, self.y + v * self.h

    def _box(self, u0: float, v0: float, u1: float, v1: float) -> tuple[float, float, float, float]:
        (a, b), (c, d) = self.at(u0, v0), self.at(u1, v1)
        return min(a, c), min(b, d), max(a, c), max(b, d)

    def _w(self, w: float) -> int:
        return max(1, round(w * self.h))

    def rect(
        self, u0: float, v0: float, u1: float, v1: float, fill: RGB, edge: RGB | None = None, w: float = 0.05
    ) -> None:
        self.draw.rectangle(self._box(u0, v0, u1, v1), fill=fill, outline=edge, width=self._w(w) if edge else 0)

    def oval(
        self, u: float, v: float, ru: float, rv: float, fill: RGB, edge: RGB | None = None, w: float = 0.05
    ) -> None:
        box = self._box(u - ru, v - rv, u + ru, v + rv)
        self.draw.ellipse(box, fill=fill, outline=edge, width=self._w(w) if edge else 0)

    def poly(self, points: Points, fill: RGB, edge: RGB | None = None, w: float = 0.05) -> None:
        xy = [self.at(u, v) for u, v in points]
        self.draw.polygon(xy, fill=fill)
        if edge:
            self.draw.line([*xy, xy[0]], fill=edge, width=self._w(w), joint="curve")

    def line(self, points: Points, fill: RGB, w: float = 0.06) -> None:
        self.draw.line([self.at(u, v) for u, v in points], fill=fill, width=self._w(w), joint="curve")

    def limb(self, points: Points, fill: RGB, w: float) -> None:
        """A thick line with round ends."""
        self.line(points, fill, w)
        for u, v in points:
            self.oval(u, v, w / 2, w / 2, fill)

    def chord(self, u: float, v: float, ru: float, rv: float, start: float, end: float, fill: RGB) -> None:
        """Part of an oval between two angles, in degrees, clockwise from 3 o'clock."""
        if self.m < 0:
            start, end = 180 - end, 180 - start
        self.draw.chord(self._box(u - ru, v - rv, u + ru, v + rv), start, end, fill=fill)

    def arc(
        self, u: float, v: float, ru: float, rv: float, start: float, end: float, fill: RGB, w: float = 0.07
    ) -> None:
        if self.m < 0:
            start, end = 180 - end, 180 - start
        self.draw.arc(self._box(u - ru, v - rv, u + ru, v + rv), start, end, fill=fill, width=self._w(w))

    def text(self, word: str, u: float, v: float, width: float, height: float, fill: RGB) -> None:
        """Letters centred at (u, v), never mirrored."""
        columns = 6 * len(word) - 1
        du, dv = width / columns, height / 7
        cx, cy = self.at(u, v)
        left, top = cx - width * self.h / 2, cy - height * self.h / 2
        for k, letter in enumerate(word):
            for row, bits in enumerate(WORLD["letters"][letter]):
                for col, bit in enumerate(bits):
                    if bit == "1":
                        a = left + (6 * k + col) * du * self.h
                        b = top + row * dv * self.h
                        self.draw.rectangle((a, b, a + du * self.h, b + dv * self.h), fill=fill)


_WRITTEN = tomllib.loads(Path(__file__).with_name("figures.toml").read_text(encoding="utf-8"))
_PALETTE: dict[str, Any] = _WRITTEN["palette"]
_INK = ImageColor.getrgb(_PALETTE["ink"])
_LETTERS, _TITLES = "ABEHKRSM", ("SALE", "OPEN", "CAFE", "SHOW", "ROCK", "DAY", "ART", "GO")
#: Numbers that say where a stroke of each kind goes; of the others, points do.
_PLACED = {"rect": 4, "oval": 4, "text": 5, "chord": 6, "arc": 6}
#: Which of them are turned about by a mirror.
_ACROSS = {"rect": (0, 2), "oval": (0,)}


@dataclass(frozen=True)
class _Stroke:
    """A line of figures.toml: the method of `Pen`, where it draws (on one side or both), and with what."""

    kind: str
    when: str
    places: tuple[Any, ...]
    colours: tuple[str, ...]
    width: tuple[float, ...]


def _stroke(line: str) -> _Stroke:
    words = line.split()
    when = words.pop(0) if words[0] in ("smiling", "serious") else ""
    both = words[0] == "both"
    kind, *words = words[both:]
    n = _PLACED.get(kind, sum("," in word for word in words))
    at, rest = words[:n], words[n:]
    width = (float(rest.pop()),) if rest[-1][0].isdigit() else ()
    place: Any
    if kind not in _PLACED:
        place = ([tuple(map(float, word.split(","))) for word in at],)
        other: Any = ([(-u, v) for u, v in place[0]],)
    else:
        place = (*at[: kind == "text"], *map(float, at[kind == "text" :]))
        other = tuple(-x if k in _ACROSS.get(kind, ()) else x for k, x in enumerate(place))
    return _Stroke(kind, when, (place, other) if both else (place,), tuple(rest), width)


@cache
def _strokes(name: str) -> list[_Stroke]:
    return [_stroke(line) for line in _WRITTEN["figures"][name]["strokes"].strip().splitlines()]


def _tone(text: str, known: Mapping[str, Any]) -> RGB:
    name, _, factor = text.partition("*")
    colour = known.get(name, name)
    rgb: Any = ImageColor.getrgb(colour) if isinstance(colour, str) else colour
    return shade(rgb, float(factor)) if factor else rgb


def draw_figure(pen: Pen, name: str, colour: RGB, look: int, smiling: bool) -> None:
    """Draw an object as figures.toml lists it; ``look`` chooses skin, words and how a pizza was cut."""
    known = {**_PALETTE, "colour": colour, "skin": _PALETTE["skins"][look % len(_PALETTE["skins"])]}
    for tone, (limit, light, dark) in _WRITTEN["figures"][name].get("tones", {}).items():
        known[tone] = _tone(light if max(colour) > limit else dark, known)
    words = {"letter": _LETTERS[look % 8], "title": _TITLES[look % 8], "title2": _TITLES[(look // 8 + look + 3) % 8]}
    for stroke in _strokes(name):
        if stroke.when in ("", "smiling" if smiling else "serious"):
            tones = [_tone(text, known) for text in stroke.colours]
            for first, *place in stroke.places:
                first = words.get(first, first) if stroke.kind == "text" else first
                getattr(pen, stroke.kind)(first, *place, *tones, *stroke.width)
    for k in range(3) if name == "pizza" else ():
        a = math.pi * (k / 3 + 0.1 * (look % 4))
        pen.line([(s * math.cos(a), s * math.sin(a)) for s in (-0.9, 0.9)], (168, 106, 48), 0.035)


_WINDOW: RGB = (74, 104, 140)


def _house(p: Pen, colour: RGB, size: float, x: float) -> None:
    p.rect(-1.1, 0.55, 1.1, 1.1, (96, 158, 76))
    s = size * 0.82
    top, base = 0.75 - 1.15 * s, 0.78
    edge = shade(colour, 0.55)
    p.rect(x - s, top, x + s, base, colour, edge, 0.03)
    p.poly([(x - 1.15 * s, top), (x, top - 0.68 * s), (x + 1.15 * s, top)], (150, 62, 44), (92, 40, 30), 0.03)
    p.rect(x + 0.5 * s, top - 0.66 * s, x + 0.72 * s, top - 0.2 * s, (120, 60, 48))
    for u in (-0.58, 0.58):
        p.rect(x + (u - 0.22) * s, top + 0.22 * s, x + (u + 0.22) * s, top + 0.64 * s, _WINDOW, (248, 248, 244), 0.04)
        p.line([(x + u * s, top + 0.22 * s), (x + u * s, top + 0.64 * s)], (248, 248, 244), 0.03)
    p.rect(x - 0.2 * s, top + 0.45 * s, x + 0.2 * s, base, (96, 58, 36), _INK, 0.02)


def _church(p: Pen, colour: RGB, size: float, x: float) -> None:
    p.rect(-1.1, 0.6, 1.1, 1.1, (118, 150, 92))
    s = size * 0.85
    base = 0.8
    edge = shade(colour, 0.55)
    nave, tower = base - 0.8 * s, base - 1.15 * s
    p.poly(
        [(x - 0.3 * s, nave), (x + 0.1 * s, nave - 0.36 * s), (x + 0.85 * s, nave - 0.36 * s), (x + 1.0 * s, nave)],
        (84, 88, 104),
    )
    p.rect(x - 0.3 * s, nave, x + 1.0 * s, base, colour, edge, 0.03)
    p.rect(x - 0.8 * s, tower, x - 0.2 * s, base, shade(colour, 0.9), edge, 0.03)
    p.poly([(x - 0.88 * s, tower), (x - 0.5 * s, tower - 0.62 * s), (x - 0.12 * s, tower)], (84, 88, 104), edge, 0.03)
    cross = tower - 0.62 * s
    p.line([(x - 0.5 * s, cross - 0.26 * s), (x - 0.5 * s, cross)], _INK, 0.05)
    p.line([(x - 0.62 * s, cross - 0.16 * s), (x - 0.38 * s, cross - 0.16 * s)], _INK, 0.05)
    for u in (0.08, 0.42, 0.76):
        p.rect(x + (u - 0.08) * s, nave + 0.28 * s, x + (u + 0.08) * s, nave + 0.62 * s, _WINDOW)
        p.chord(x + u * s, nave + 0.28 * s, 0.08 * s, 0.12 * s, 180, 360, _WINDOW)
    p.rect(x - 0.62 * s, base - 0.36 * s, x - 0.38 * s, base, (84, 52, 36))
    p.oval(x - 0.5 * s, tower + 0.26 * s, 0.13 * s, 0.13 * s, (244, 236, 200), _INK, 0.02)


def _mountain(p: Pen, colour: RGB, size: float, x: float) -> None:
    h = 1.55 * size
    base = 0.75
    p.poly([(x + 0.1, base), (x + 0.85, base - 0.62 * h), (x + 1.9, base)], shade(colour, 0.8))
    p.poly([(x - 1.9, base), (x - 0.95, base - 0.55 * h), (x - 0.2, base)], shade(colour, 0.7))
    peak = base - h
    p.poly([(x - 1.15, base), (x, peak), (x + 1.15, base)], colour)
    p.poly([(x, peak), (x + 1.15, base), (x + 0.25, base)], shade(colour, 0.68))
    k = 0.34
    rim = [(x + 0.2, peak + h * 0.24), (x + 0.05, peak + h * 0.4), (x - 0.14, peak + h * 0.25)]
    snow = [(x, peak), (x + 1.15 * k, peak + h * k), *rim, (x - 1.15 * k, peak + h * k)]
    p.poly(snow, (248, 250, 252))
    p.rect(-1.1, base - 0.02, 1.1, 1.1, (86, 124, 70))


def _beach(p: Pen, colour: RGB, size: float, x: float) -> None:
    horizon = 0.42 - 0.62 * size
    p.rect(-1.1, horizon, 1.1, 0.5, (36, 124, 178))
    for k in range(4):
        v = horizon + 0.1 + 0.16 * k
        p.line([(-1.1 + 0.25 * (k % 2), v), (-0.35 + x, v)], (150, 208, 228), 0.035)
        p.line([(0.1 + x, v + 0.05), (0.85, v + 0.05)], (150, 208, 228), 0.035)
    p.poly([(-1.1, 0.42), (-0.4, 0.3), (0.3, 0.42), (1.1, 0.28), (1.1, 1.1), (-1.1, 1.1)], (250, 250, 246))
    p.poly([(-1.1, 0.5), (-0.4, 0.38), (0.3, 0.5), (1.1, 0.36), (1.1, 1.1), (-1.1, 1.1)], (234, 208, 146))
    p.oval(x * 0.5 + 0.62, horizon - 0.36, 0.17, 0.17, (255, 234, 120))


def _corridor(p: Pen, colour: RGB, size: float, x: float) -> None:
    d = 0.46 - 0.26 * size
    cx, cy = 0.6 * x, -0.05
    left, right, top, low = cx - d, cx + d, cy - d * 1.1, cy + d * 1.25
    p.poly([(-1.1, -1.1), (left, top), (left, low), (-1.1, 1.1)], shade(colour, 0.78))
    p.poly([(1.1, -1.1), (right, top), (right, low), (1.1, 1.1)], shade(colour, 0.66))
    p.poly([(-1.1, -1.1), (1.1, -1.1), (right, top), (left, top)], shade(colour, 0.94))
    p.poly([(-1.1, 1.1), (1.1, 1.1), (right, low), (left, low)], (128, 92, 66))
    p.rect(left, top, right, low, shade(colour, 0.5))
    p.rect(cx - d * 0.45, cy - d * 0.5, cx + d * 0.45, low, (70, 44, 30))
    for a in ((-1.1, -1.1, left, top), (1.1, -1.1, right, top), (-1.1, 1.1, left, low), (1.1, 1.1, right, low)):
        p.line([(a[0], a[1]), (a[2], a[3])], _INK, 0.03)
    for f in (0.25, 0.6):
        # Doors shrink with distance f along both walls.
        width, far = 0.14 * (1 - f) + 0.06, 1.1 - f * (1.1 - d)
        lintel, sill = cy - 0.5 * far, cy + 0.95 * far
        for side, edge in ((1, -1.1 + (left + 1.1) * f), (-1, 1.1 + (right - 1.1) * f)):
            inner = edge + side * width
            p.poly([(edge, lintel), (inner, lintel + 0.04), (inner, sill - 0.12), (edge, sill)], (88, 58, 40))
    for f in (0.15, 0.5, 0.78):
        reach, v = 0.16 * (1 - f), -1.0 + (top + 1.0) * f
        p.limb([(cx * f - reach, v), (cx * f + reach, v)], (255, 252, 220), 0.1 * (1.1 - f))


# (pen, colour, size, x)
PLACES = {"house": _house, "church": _church, "mountain": _mountain, "beach": _beach, "corridor": _corridor}
