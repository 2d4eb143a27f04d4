"""Drawing in an object's own coordinates: the unit square [-1, 1] x [-1, 1], v pointing down."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import ImageDraw

__all__ = ["RGB", "Pen", "shade"]

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
