"""Faces, bodies, words, food, neutral objects and places. Every function draws one of them with a pen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import ImageDraw

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


SKINS: tuple[RGB, ...] = ((246, 212, 184), (226, 178, 138), (176, 122, 84), (118, 78, 54))
_INK: RGB = (30, 26, 28)
_WHITE: RGB = (250, 250, 248)
_LIP: RGB = (196, 56, 66)


def _eyes(p: Pen, v: float, gap: float, r: float, iris: RGB = (60, 44, 34)) -> None:
    for u in (-gap, gap):
        p.oval(u, v, r * 1.35, r, _WHITE)
        p.oval(u, v, r * 0.75, r * 0.85, iris)
        p.oval(u, v, r * 0.4, r * 0.45, _INK)


def _mouth(p: Pen, v: float, width: float, smiling: bool, colour: RGB) -> None:
    if smiling:
        p.chord(0, v - 0.08, width, 0.26, 10, 170, colour)
        p.chord(0, v - 0.06, width * 0.8, 0.14, 10, 170, _WHITE)
    else:
        p.limb([(-width * 0.7, v), (width * 0.7, v)], colour, 0.09)


def _man(p: Pen, colour: RGB, skin: RGB, smiling: bool) -> None:
    p.rect(-0.3, 0.6, 0.3, 1.0, shade(skin, 0.85))
    for u in (-0.68, 0.68):
        p.oval(u, 0.05, 0.12, 0.18, shade(skin, 0.85))
    p.oval(0, -0.02, 0.68, 0.9, colour)
    p.oval(0, 0.06, 0.62, 0.78, skin)
    p.chord(0, 0.06, 0.64, 0.82, 18, 162, colour)
    p.chord(0, -0.32, 0.66, 0.6, 196, 344, colour)
    _eyes(p, -0.05, 0.27, 0.11)
    for u in (-0.27, 0.27):
        p.line([(u - 0.17, -0.24), (u + 0.17, -0.24)], shade(colour, 0.6), 0.09)
    p.poly([(0, -0.02), (-0.12, 0.28), (0.12, 0.28)], shade(skin, 0.8))
    _mouth(p, 0.5, 0.3, smiling, _LIP)


def _woman(p: Pen, colour: RGB, skin: RGB, smiling: bool) -> None:
    p.oval(0, -0.1, 0.82, 0.88, colour)
    p.poly([(-0.82, -0.1), (-0.9, 0.98), (0.9, 0.98), (0.82, -0.1)], colour)
    p.rect(-0.22, 0.6, 0.22, 1.0, shade(skin, 0.85))
    p.oval(0, 0.1, 0.55, 0.72, skin)
    p.chord(0, -0.12, 0.58, 0.6, 190, 300, colour)
    p.chord(0, -0.16, 0.6, 0.56, 250, 350, colour)
    _eyes(p, 0.02, 0.24, 0.12, (56, 84, 60))
    for u in (-0.24, 0.24):
        p.arc(u, 0.0, 0.19, 0.17, 200, 340, _INK, 0.06)
        p.oval(1.35 * u, 0.32, 0.1, 0.07, shade((236, 120, 110), 0.98))
    p.line([(0, 0.1), (-0.04, 0.3), (0.05, 0.3)], shade(skin, 0.72), 0.05)
    _mouth(p, 0.52, 0.26, smiling, (214, 24, 60))


def _child(p: Pen, colour: RGB, skin: RGB, smiling: bool) -> None:
    for u in (-0.86, 0.86):
        p.oval(u, 0.12, 0.13, 0.16, shade(skin, 0.88))
    p.oval(0, 0.08, 0.86, 0.84, skin)
    p.chord(0, -0.06, 0.84, 0.74, 205, 335, colour)
    p.poly([(-0.1, -0.72), (-0.22, -1.0), (0.02, -0.86), (0.2, -1.0), (0.18, -0.7)], colour)
    _eyes(p, 0.1, 0.34, 0.19, (60, 100, 170))
    for u in (-0.56, 0.56):
        p.oval(u, 0.44, 0.16, 0.11, (240, 138, 128))
    p.oval(0, 0.32, 0.08, 0.06, shade(skin, 0.75))
    _mouth(p, 0.6, 0.24, smiling, _LIP)


def _cat(p: Pen, colour: RGB, skin: RGB, smiling: bool) -> None:
    light = max(colour) > 120
    edge = shade(colour, 0.6) if light else (96, 92, 96)
    for s in (-1, 1):
        p.poly([(s * 0.84, -1.0), (s * 0.86, -0.1), (s * 0.18, -0.55)], colour, edge)
        p.poly([(s * 0.74, -0.78), (s * 0.72, -0.35), (s * 0.4, -0.52)], (238, 160, 160))
    p.oval(0, 0.15, 0.9, 0.75, colour, edge)
    for u in (-0.18, 0, 0.18):
        p.line([(u, -0.5), (u * 0.8, -0.25)], edge, 0.07)
    p.oval(0, 0.5, 0.4, 0.28, shade(colour, 1.5) if light else (110, 106, 110))
    for u in (-0.38, 0.38):
        p.oval(u, 0.05, 0.2, 0.17, (176, 214, 70))
        p.oval(u, 0.05, 0.06, 0.16, _INK)
    p.poly([(-0.12, 0.34), (0.12, 0.34), (0, 0.47)], (226, 96, 110))
    p.arc(-0.12, 0.48, 0.12, 0.12, 0, 170, _INK, 0.05)
    p.arc(0.12, 0.48, 0.12, 0.12, 10, 180, _INK, 0.05)
    whisker = _INK if light else _WHITE
    for s in (-1, 1):
        for dv in (-0.08, 0.06, 0.2):
            p.line([(s * 0.36, 0.48 + dv * 0.4), (s * 1.0, 0.44 + dv)], whisker, 0.03)


def _dog(p: Pen, colour: RGB, skin: RGB, smiling: bool) -> None:
    light = max(colour) > 200
    ear = shade(colour, 0.55) if max(colour) > 60 else (84, 76, 74)
    muzzle = (226, 196, 160) if not light else (250, 236, 214)
    p.oval(0, -0.1, 0.66, 0.78, colour, ear)
    p.oval(0, 0.42, 0.52, 0.5, muzzle)
    for s in (-1, 1):
        p.poly([(s * 0.46, -0.8), (s * 0.86, -0.62), (s * 0.98, 0.3), (s * 0.72, 0.46), (s * 0.54, -0.1)], ear)
        p.oval(s * 0.27, -0.18, 0.14, 0.16, _WHITE)
        p.oval(s * 0.27, -0.16, 0.1, 0.12, _INK)
    p.poly([(-0.16, 0.64), (0.16, 0.64), (0.14, 0.96), (-0.14, 0.96)], (236, 96, 116))
    p.line([(0, 0.3), (0, 0.58)], _INK, 0.06)
    p.line([(-0.32, 0.62), (0, 0.56), (0.32, 0.62)], _INK, 0.07)
    p.oval(0, 0.2, 0.24, 0.16, _INK)


_TROUSERS: RGB = (44, 52, 92)


def _head(p: Pen, u: float, v: float, skin: RGB) -> None:
    # Seen from behind: a body must not bring a face with it.
    p.oval(u, v, 0.17, 0.2, (58, 42, 34))
    p.oval(u, v + 0.16, 0.09, 0.1, skin)


def _person(p: Pen, colour: RGB, skin: RGB, smiling: bool) -> None:
    for s in (-1, 1):
        p.limb([(s * 0.13, 0.12), (s * 0.16, 0.92)], _TROUSERS, 0.22)
        p.limb([(s * 0.28, -0.44), (s * 0.42, 0.0), (s * 0.4, 0.24)], skin, 0.14)
        p.limb([(s * 0.28, -0.44), (s * 0.38, -0.12)], colour, 0.18)
        p.oval(s * 0.2, 0.96, 0.16, 0.06, _INK)
    p.poly([(-0.34, -0.52), (0.34, -0.52), (0.26, 0.22), (-0.26, 0.22)], colour, shade(colour, 0.65), 0.03)
    _head(p, 0, -0.78, skin)


def _runner(p: Pen, colour: RGB, skin: RGB, smiling: bool) -> None:
    p.limb([(-0.1, 0.14), (-0.5, 0.42), (-0.9, 0.3)], shade(skin, 0.8), 0.19)
    p.limb([(-0.04, -0.44), (-0.46, -0.34), (-0.62, 0.02)], shade(skin, 0.8), 0.14)
    p.limb([(0.0, 0.14), (0.46, 0.28), (0.36, 0.86)], skin, 0.2)
    p.limb([(-0.1, 0.1), (0.22, 0.2)], _TROUSERS, 0.3)
    p.limb([(0.34, 0.92), (0.56, 0.92)], _WHITE, 0.13)
    p.limb([(-0.92, 0.24), (-0.96, 0.44)], _WHITE, 0.13)
    p.limb([(0.1, -0.42), (-0.06, 0.08)], colour, 0.4)
    p.limb([(0.16, -0.42), (0.44, -0.1), (0.78, -0.32)], skin, 0.14)
    _head(p, 0.28, -0.78, skin)


def _dancer(p: Pen, colour: RGB, skin: RGB, smiling: bool) -> None:
    p.limb([(-0.02, 0.3), (-0.04, 0.94)], skin, 0.15)
    p.limb([(0.06, 0.26), (0.34, 0.62), (0.0, 0.66)], shade(skin, 0.86), 0.14)
    for s in (-1, 1):
        p.limb([(s * 0.16, -0.4), (s * 0.5, -0.66), (s * 0.12, -0.97)], skin, 0.12)
    right = [(0.12, -0.08), (0.72, 0.3), (0.4, 0.42)]
    left = [(-u, v) for u, v in reversed(right)]
    p.poly([(-0.2, -0.46), (0.2, -0.46), *right, (0.0, 0.36), *left], colour, shade(colour, 0.65), 0.03)
    _head(p, 0, -0.68, skin)
    p.oval(0, -0.88, 0.1, 0.09, (58, 42, 34))


def _surfer(p: Pen, colour: RGB, skin: RGB, smiling: bool) -> None:
    p.oval(0, 0.82, 0.98, 0.15, colour, shade(colour, 0.55), 0.05)
    p.limb([(-0.04, 0.02), (-0.48, 0.3), (-0.44, 0.74)], _TROUSERS, 0.19)
    p.limb([(0.04, 0.02), (0.42, 0.28), (0.42, 0.74)], _TROUSERS, 0.19)
    p.limb([(0.1, -0.42), (0.0, 0.02)], _INK, 0.36)
    p.limb([(0.06, -0.42), (-0.42, -0.4), (-0.88, -0.52)], skin, 0.14)
    p.limb([(0.16, -0.42), (0.54, -0.28), (0.92, -0.4)], skin, 0.14)
    _head(p, 0.16, -0.76, skin)


def _hand(p: Pen, colour: RGB, skin: RGB, smiling: bool) -> None:
    edge = shade(skin, 0.6)
    roots = [(-0.32, -0.1), (-0.11, -0.2), (0.12, -0.2), (0.33, -0.08)]
    tips = [(-0.48, -0.66), (-0.15, -0.86), (0.18, -0.82), (0.5, -0.58)]
    fingers = list(zip(roots, tips))
    thumb = [(-0.3, 0.4), (-0.64, 0.22), (-0.82, -0.06)]
    p.limb([(0, 0.5), (0, 0.92)], edge, 0.54)
    for a, b in fingers:
        p.limb([a, b], edge, 0.25)
    p.limb(thumb, edge, 0.27)
    p.oval(0, 0.22, 0.49, 0.5, edge)
    p.limb([(0, 0.5), (0, 0.94)], skin, 0.46)
    for a, b in fingers:
        p.limb([a, b], skin, 0.18)
    p.limb(thumb, skin, 0.2)
    p.oval(0, 0.22, 0.45, 0.46, skin)
    p.arc(0.06, 0.22, 0.3, 0.26, 150, 300, edge, 0.05)
    p.line([(-0.28, 0.02), (0.3, 0.06)], edge, 0.05)


# (pen, colour, skin, smiling)
_LIVING = (_man, _woman, _child, _cat, _dog, _person, _runner, _dancer, _surfer, _hand)
LIVING = {draw.__name__[1:]: draw for draw in _LIVING}

_BRIGHT: RGB = (250, 250, 246)
_PAPER: RGB = (244, 240, 226)
LETTERS = "ABEHKRSM"
TITLES = ("SALE", "OPEN", "CAFE", "SHOW", "ROCK", "DAY", "ART", "GO")


def _sign(p: Pen, colour: RGB, variant: int) -> None:
    p.rect(-0.07, 0.5, 0.07, 1.0, (120, 122, 126))
    points = [(0.82 * math.cos(a), -0.16 + 0.82 * math.sin(a)) for a in [math.pi * (k + 0.5) / 4 for k in range(8)]]
    p.poly(points, colour, _BRIGHT, 0.09)
    p.text("STOP", 0, -0.16, 1.24, 0.46, _BRIGHT)


def _letter(p: Pen, colour: RGB, variant: int) -> None:
    p.rect(-0.78, -0.92, 0.78, 0.92, _PAPER, (120, 116, 104), 0.05)
    p.text(LETTERS[variant % len(LETTERS)], 0, 0, 1.0, 1.34, colour)


def _poster(p: Pen, colour: RGB, variant: int) -> None:
    ink = _INK if sum(colour) > 380 else _BRIGHT
    p.rect(-0.7, -0.98, 0.7, 0.98, colour, shade(colour, 0.5), 0.06)
    first = TITLES[variant % len(TITLES)]
    second = TITLES[(variant // len(TITLES) + variant + 3) % len(TITLES)]
    p.text(first, 0, -0.56, 1.12, 0.46, ink)
    p.text(second, 0, 0.08, 1.12, 0.46, ink)
    p.rect(-0.56, 0.5, 0.56, 0.6, ink)
    p.rect(-0.56, 0.72, 0.3, 0.82, ink)


def _book(p: Pen, colour: RGB, variant: int) -> None:
    p.poly([(-0.66, -0.82), (0.74, -0.92), (0.84, 0.8), (-0.54, 0.96)], _PAPER, (110, 100, 84))
    p.poly([(-0.76, -0.92), (0.62, -0.92), (0.62, 0.84), (-0.76, 0.84)], colour, shade(colour, 0.5))
    p.rect(-0.76, -0.92, -0.58, 0.84, shade(colour, 0.55))
    p.text(TITLES[variant % len(TITLES)], 0.03, -0.42, 1.0, 0.42, (250, 222, 120))
    p.line([(-0.44, 0.02), (0.5, 0.02)], (250, 222, 120), 0.06)
    p.text(LETTERS[variant % len(LETTERS)], 0.03, 0.42, 0.34, 0.42, (250, 222, 120))


def _newspaper(p: Pen, colour: RGB, variant: int) -> None:
    p.rect(-0.98, -0.78, 0.98, 0.82, (238, 238, 234), (90, 90, 92), 0.05)
    p.text("NEWS", 0, -0.5, 1.56, 0.34, _INK)
    p.line([(-0.84, -0.22), (0.84, -0.22)], _INK, 0.05)
    p.rect(-0.84, -0.1, -0.1, 0.36, (150, 152, 156))
    for k in range(7):
        v = -0.06 + 0.12 * k
        p.line([(0.04, v), (0.84 if k % 3 else 0.7, v)], (70, 70, 74), 0.05)
        if v > 0.36:
            p.line([(-0.84, v), (-0.1, v)], (70, 70, 74), 0.05)


def _pizza(p: Pen, colour: RGB, variant: int) -> None:
    p.oval(0, 0, 0.98, 0.98, (196, 132, 62), (140, 84, 36))
    p.oval(0, 0, 0.82, 0.82, (206, 62, 34))
    p.oval(0, 0, 0.77, 0.77, (248, 204, 88))
    spots = [(-0.36, -0.36), (0.34, -0.42), (0.5, 0.12), (0.06, 0.02), (-0.5, 0.14), (-0.12, 0.52), (0.32, 0.52)]
    for u, v in spots:
        p.oval(u, v, 0.16, 0.16, (190, 40, 36))
    for u, v in [(0.0, -0.56), (-0.22, 0.24), (0.28, -0.12), (-0.56, -0.16)]:
        p.oval(u, v, 0.07, 0.07, (60, 124, 50))
    for k in range(3):
        a = math.pi * (k / 3 + 0.1 * (variant % 4))
        p.line([(s * math.cos(a), s * math.sin(a)) for s in (-0.9, 0.9)], (168, 106, 48), 0.035)


def _apple(p: Pen, colour: RGB, variant: int) -> None:
    dark = shade(colour, 0.62)
    p.oval(-0.3, 0.2, 0.58, 0.72, colour, dark)
    p.oval(0.3, 0.2, 0.58, 0.72, colour, dark)
    p.oval(0, 0.22, 0.66, 0.64, colour)
    p.chord(0, -0.46, 0.3, 0.2, 0, 180, dark)
    p.limb([(0, -0.4), (0.1, -0.88)], (92, 60, 34), 0.11)
    p.poly([(0.1, -0.62), (0.4, -0.94), (0.74, -0.82), (0.46, -0.6)], (70, 150, 60))
    p.oval(-0.42, -0.06, 0.12, 0.22, shade(colour, 1.55))


def _banana(p: Pen, colour: RGB, variant: int) -> None:
    bow = [math.pi * (0.04 + 0.92 * k / 24) for k in range(25)]
    back = [math.pi * (0.96 - 0.92 * k / 24) for k in range(25)]
    outer = [(0.98 * math.cos(a), -0.5 + 1.22 * math.sin(a)) for a in bow]
    inner = [(0.8 * math.cos(a), -0.5 + 0.62 * math.sin(a)) for a in back]
    p.poly([*outer, *inner], (250, 218, 62), (160, 122, 20), 0.05)
    short = [math.pi * (0.12 + 0.76 * k / 20) for k in range(21)]
    middle = [(0.89 * math.cos(a), -0.5 + 0.9 * math.sin(a)) for a in short]
    p.line(middle, (206, 164, 40), 0.05)
    p.limb([(0.9, -0.42), (0.92, -0.66)], (110, 82, 34), 0.16)
    p.oval(-0.9, -0.38, 0.1, 0.08, (70, 52, 28))


def _cake(p: Pen, colour: RGB, variant: int) -> None:
    p.oval(0, 0.82, 0.98, 0.16, (214, 216, 222), (150, 152, 160), 0.04)
    p.rect(-0.76, -0.1, 0.76, 0.8, (224, 178, 112))
    p.rect(-0.76, 0.28, 0.76, 0.42, colour)
    p.oval(0, -0.1, 0.76, 0.24, colour)
    p.rect(-0.76, -0.1, 0.76, 0.06, colour)
    for k in range(5):
        p.oval(-0.61 + 0.305 * k, 0.06, 0.15, 0.13 + 0.08 * (k % 2), colour)
    edge = shade(colour, 0.6)
    p.arc(0, -0.1, 0.76, 0.24, 180, 360, edge, 0.04)
    for u in (-0.76, 0.76):
        p.line([(u, -0.1), (u, 0.8)], edge, 0.04)
    p.oval(0, -0.42, 0.2, 0.2, (206, 20, 48))
    p.line([(0.02, -0.58), (0.16, -0.92)], (60, 110, 50), 0.06)
    for u in (-0.44, 0.44):
        p.rect(u - 0.05, -0.62, u + 0.05, -0.16, _BRIGHT, (120, 150, 220), 0.02)
        p.oval(u, -0.74, 0.07, 0.13, (252, 170, 40))


def _burger(p: Pen, colour: RGB, variant: int) -> None:
    bun = (214, 146, 70)
    p.chord(0, 0.0, 0.92, 0.84, 180, 360, bun)
    p.rect(-0.92, -0.1, 0.92, 0.0, bun)
    for u, v in [(-0.46, -0.4), (-0.16, -0.6), (0.18, -0.5), (0.5, -0.36), (0.02, -0.3), (-0.26, -0.24), (0.36, -0.68)]:
        p.oval(u, v, 0.07, 0.045, (252, 236, 196))
    right = [(0.86, 0.2), (0.56, 0.08), (0.28, 0.22)]
    left = [(-u, v) for u, v in reversed(right)]
    p.poly([(-1.0, 0.02), (1.0, 0.02), *right, (0.0, 0.08), *left], (92, 176, 60))
    p.rect(-0.9, 0.2, 0.9, 0.46, (92, 50, 28))
    p.poly([(-0.92, 0.14), (0.92, 0.14), (0.6, 0.28), (0.3, 0.4), (0.1, 0.22)], (250, 190, 40))
    p.rect(-0.88, 0.46, 0.88, 0.6, bun)
    p.chord(0, 0.52, 0.88, 0.36, 0, 180, bun)
    p.arc(0, 0.0, 0.92, 0.84, 180, 360, shade(bun, 0.6), 0.05)


def _ball(p: Pen, colour: RGB, variant: int) -> None:
    p.oval(0, 0, 0.95, 0.95, colour, shade(colour, 0.55))
    p.arc(-0.85, 0, 0.75, 0.95, 300, 60, shade(colour, 0.55), 0.06)
    p.arc(0.85, 0, 0.75, 0.95, 120, 240, shade(colour, 0.55), 0.06)
    p.oval(-0.3, -0.42, 0.18, 0.14, shade(colour, 1.7))


def _cup(p: Pen, colour: RGB, variant: int) -> None:
    dark = shade(colour, 0.6)
    p.oval(0.68, 0.12, 0.3, 0.36, dark)
    p.oval(0.66, 0.12, 0.16, 0.2, (206, 208, 212))
    p.poly([(-0.7, -0.66), (0.7, -0.66), (0.52, 0.9), (-0.52, 0.9)], colour, dark)
    p.oval(0, -0.66, 0.7, 0.2, dark)
    p.oval(0, -0.64, 0.6, 0.13, (70, 44, 28))


def _tree(p: Pen, colour: RGB, variant: int) -> None:
    p.poly([(-0.14, 0.1), (0.14, 0.1), (0.2, 1.0), (-0.2, 1.0)], (104, 70, 42))
    for u, v, r in [(0, -0.46, 0.5), (-0.44, -0.16, 0.42), (0.44, -0.16, 0.42), (0, 0.04, 0.42)]:
        p.oval(u, v, r, r, (48, 122, 54))
    for u, v, r in [(-0.16, -0.6, 0.22), (-0.5, -0.26, 0.16), (0.36, -0.3, 0.18)]:
        p.oval(u, v, r, r, (96, 168, 80))


def _umbrella(p: Pen, colour: RGB, variant: int) -> None:
    dark = shade(colour, 0.6)
    p.line([(0, -0.8), (0, 0.76)], (90, 80, 74), 0.08)
    p.arc(0.14, 0.76, 0.14, 0.18, 0, 180, (90, 80, 74), 0.09)
    p.chord(0, 0.0, 0.98, 0.86, 180, 360, colour)
    for k in (-1, 0, 1):
        p.line([(0, -0.84), (k * 0.36, 0.0)], dark, 0.05)
    p.arc(0, 0.0, 0.98, 0.86, 180, 360, dark, 0.05)
    p.line([(-0.98, 0), (0.98, 0)], dark, 0.05)


def _box(p: Pen, colour: RGB, variant: int) -> None:
    p.poly([(-0.86, -0.4), (-0.4, -0.8), (0.88, -0.8), (0.44, -0.4)], shade(colour, 1.45))
    p.poly([(0.44, -0.4), (0.88, -0.8), (0.88, 0.42), (0.44, 0.86)], shade(colour, 0.55))
    p.rect(-0.86, -0.4, 0.44, 0.86, colour)
    p.line([(-0.2, -0.4), (-0.2, 0.86)], shade(colour, 0.7), 0.12)


# (pen, colour, variant)
_WORDS_AND_FOOD = (_sign, _letter, _poster, _book, _newspaper, _pizza, _apple, _banana, _cake, _burger)
THINGS = {draw.__name__[1:]: draw for draw in (*_WORDS_AND_FOOD, _ball, _cup, _tree, _umbrella, _box)}

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
