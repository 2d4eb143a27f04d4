"""Faces, bodies, words, food, neutral objects and places, drawn stroke by stroke as figures.toml says."""

from __future__ import annotations

import math
import re
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

    def text(self, u: float, v: float, width: float, height: float, fill: RGB, word: str) -> None:
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
_LETTERS, _TITLES = "ABEHKRSM", ("SALE", "OPEN", "CAFE", "SHOW", "ROCK", "DAY", "ART", "GO")
#: Numbers that say where a stroke of each kind goes (of the others, points do), and those that a mirror turns about.
_PLACED = {"rect": 4, "oval": 4, "text": 4, "chord": 6, "arc": 6}
_ACROSS = {"rect": (0, 2), "oval": (0,)}


@dataclass(frozen=True)
class _Stroke:
    """A line of figures.toml: a method of `Pen`, for whom, on both sides or one, where, in which colours, and more."""

    kind: str
    when: str
    both: bool
    at: tuple[str, ...]
    colours: tuple[str, ...]
    more: tuple[Any, ...]


def _stroke(line: str) -> _Stroke:
    words = line.split()
    when = words.pop(0) if words[0] in ("smiling", "serious") else ""
    both = words[0] == "both"
    kind, *words = words[both:]
    n = _PLACED.get(kind, sum("," in word for word in words))
    at, rest = words[:n], words[n:]
    more: tuple[Any, ...] = ()
    if kind == "text" or rest[-1][0].isdigit():
        last = rest.pop()
        more = (last if kind == "text" else float(last),)
    return _Stroke(kind, when, both, tuple(at), tuple(rest), more)


@cache
def _strokes(name: str) -> list[_Stroke]:
    return [_stroke(line) for line in _WRITTEN["figures"][name]["strokes"].strip().splitlines()]


@cache
def _linear(word: str) -> dict[str, float]:
    """Factors of 1, s and x: ``0.75-0.5s`` is {"": 0.75, "s": -0.5}."""
    terms = re.findall(r"([+-]?[\d.]*)([sx]?)", word)
    return {name: float(factor if factor.strip("+-") else factor + "1") for factor, name in terms if factor or name}


def _tone(text: str, known: Mapping[str, Any]) -> RGB:
    name, _, factor = text.partition("*")
    colour = known.get(name, name)
    rgb: Any = ImageColor.getrgb(colour) if isinstance(colour, str) else colour
    return shade(rgb, float(factor)) if factor else rgb


def draw_figure(
    pen: Pen, name: str, colour: RGB, look: int, smiling: bool = False, size: float = 1.0, x: float = 0.0
) -> None:
    """Draw an object as figures.toml lists it; ``look`` chooses skin, words and how a pizza was cut."""
    known = {**_PALETTE, "colour": colour, "skin": _PALETTE["skins"][look % len(_PALETTE["skins"])]}
    for tone, (limit, light, dark) in _WRITTEN["figures"][name].get("tones", {}).items():
        known[tone] = _tone(light if max(colour) > limit else dark, known)
    words = {"letter": _LETTERS[look % 8], "title": _TITLES[look % 8], "title2": _TITLES[(look // 8 + look + 3) % 8]}
    scale = {"": 1.0, "s": size, "x": x}

    def at(word: str) -> float:
        return sum(factor * scale[name] for name, factor in _linear(word).items())

    for stroke in _strokes(name):
        if stroke.when not in ("", "smiling" if smiling else "serious"):
            continue
        tones, more = [_tone(text, known) for text in stroke.colours], [words.get(x, x) for x in stroke.more]
        for side in (1, -1) if stroke.both else (1,):
            if stroke.kind in _PLACED:
                across = _ACROSS.get(stroke.kind, ())
                place: list[Any] = [side * at(word) if k in across else at(word) for k, word in enumerate(stroke.at)]
            else:
                points = (map(at, word.split(",")) for word in stroke.at)
                place = [[(side * u, v) for u, v in points]]
            getattr(pen, stroke.kind)(*place, *tones, *more)
    for k in range(3) if name == "pizza" else ():
        a = math.pi * (k / 3 + 0.1 * (look % 4))
        pen.line([(s * math.cos(a), s * math.sin(a)) for s in (-0.9, 0.9)], (168, 106, 48), 0.035)
