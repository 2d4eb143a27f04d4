"""Faces and bodies. Every function draws one object with a pen: ``(pen, colour, look)``."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import ImageDraw

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
    p.poly(
        [
            (-0.2, -0.46),
            (0.2, -0.46),
            (0.12, -0.08),
            (0.72, 0.3),
            (0.4, 0.42),
            (0.0, 0.36),
            (-0.4, 0.42),
            (-0.72, 0.3),
            (-0.12, -0.08),
        ],
        colour,
        shade(colour, 0.65),
        0.03,
    )
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


LIVING = {
    "man": _man,
    "woman": _woman,
    "child": _child,
    "cat": _cat,
    "dog": _dog,
    "person": _person,
    "runner": _runner,
    "dancer": _dancer,
    "surfer": _surfer,
    "hand": _hand,
}


RGB = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


def shade(colour: RGB, factor: float) -> RGB:
    """Darker (factor < 1) or lighter (factor > 1) version of a colour."""
    if factor <= 1:
        r, g, b = (round(c * factor) for c in colour)
    else:
        r, g, b = (round(c + (255 - c) * (factor - 1)) for c in colour)
    return min(r, 255), min(g, 255), min(b, 255)


# 5 x 7 dot letters: drawn here so that a scene is the same wherever fonts differ.
_GLYPHS = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "G": "01111 10000 10000 10111 10001 10001 01111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "N": "10001 11001 10101 10101 10011 10001 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "W": "10001 10001 10001 10101 10101 11011 10001",
    "Y": "10001 10001 01010 00100 00100 00100 00100",
}


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
            for row, bits in enumerate(_GLYPHS[letter].split()):
                for col, bit in enumerate(bits):
                    if bit == "1":
                        a = left + (6 * k + col) * du * self.h
                        b = top + row * dv * self.h
                        self.draw.rectangle((a, b, a + du * self.h, b + dv * self.h), fill=fill)
