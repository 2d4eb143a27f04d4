"""Words, food and neutral objects. Every function draws one object: ``(pen, colour, variant)``."""

from __future__ import annotations

import math

from neuroenc.data.simulate._draw_living import RGB, Pen, shade

_INK: RGB = (30, 26, 28)
_WHITE: RGB = (250, 250, 246)
_PAPER: RGB = (244, 240, 226)

LETTERS = "ABEHKRSM"
TITLES = ("SALE", "OPEN", "CAFE", "SHOW", "ROCK", "DAY", "ART", "GO")


def _sign(p: Pen, colour: RGB, variant: int) -> None:
    p.rect(-0.07, 0.5, 0.07, 1.0, (120, 122, 126))
    points = [
        (0.82 * math.cos(math.pi * (k + 0.5) / 4), -0.16 + 0.82 * math.sin(math.pi * (k + 0.5) / 4)) for k in range(8)
    ]
    p.poly(points, colour, _WHITE, 0.09)
    p.text("STOP", 0, -0.16, 1.24, 0.46, _WHITE)


def _letter(p: Pen, colour: RGB, variant: int) -> None:
    p.rect(-0.78, -0.92, 0.78, 0.92, _PAPER, (120, 116, 104), 0.05)
    p.text(LETTERS[variant % len(LETTERS)], 0, 0, 1.0, 1.34, colour)


def _poster(p: Pen, colour: RGB, variant: int) -> None:
    ink = _INK if sum(colour) > 380 else _WHITE
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
        p.line(
            [(-0.9 * math.cos(a), -0.9 * math.sin(a)), (0.9 * math.cos(a), 0.9 * math.sin(a))], (168, 106, 48), 0.035
        )


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
    outer = [
        (0.98 * math.cos(a), -0.5 + 1.22 * math.sin(a)) for a in [math.pi * (0.04 + 0.92 * k / 24) for k in range(25)]
    ]
    inner = [
        (0.8 * math.cos(a), -0.5 + 0.62 * math.sin(a)) for a in [math.pi * (0.96 - 0.92 * k / 24) for k in range(25)]
    ]
    p.poly([*outer, *inner], (250, 218, 62), (160, 122, 20), 0.05)
    middle = [
        (0.89 * math.cos(a), -0.5 + 0.9 * math.sin(a)) for a in [math.pi * (0.12 + 0.76 * k / 20) for k in range(21)]
    ]
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
        p.rect(u - 0.05, -0.62, u + 0.05, -0.16, _WHITE, (120, 150, 220), 0.02)
        p.oval(u, -0.74, 0.07, 0.13, (252, 170, 40))


def _burger(p: Pen, colour: RGB, variant: int) -> None:
    bun = (214, 146, 70)
    p.chord(0, 0.0, 0.92, 0.84, 180, 360, bun)
    p.rect(-0.92, -0.1, 0.92, 0.0, bun)
    for u, v in [(-0.46, -0.4), (-0.16, -0.6), (0.18, -0.5), (0.5, -0.36), (0.02, -0.3), (-0.26, -0.24), (0.36, -0.68)]:
        p.oval(u, v, 0.07, 0.045, (252, 236, 196))
    p.poly(
        [
            (-1.0, 0.02),
            (1.0, 0.02),
            (0.86, 0.2),
            (0.56, 0.08),
            (0.28, 0.22),
            (0.0, 0.08),
            (-0.28, 0.22),
            (-0.56, 0.08),
            (-0.86, 0.2),
        ],
        (92, 176, 60),
    )
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


THINGS = {
    "sign": _sign,
    "letter": _letter,
    "poster": _poster,
    "book": _book,
    "newspaper": _newspaper,
    "pizza": _pizza,
    "apple": _apple,
    "banana": _banana,
    "cake": _cake,
    "burger": _burger,
    "ball": _ball,
    "cup": _cup,
    "tree": _tree,
    "umbrella": _umbrella,
    "box": _box,
}


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


PLACES = {"house": _house, "church": _church, "mountain": _mountain, "beach": _beach, "corridor": _corridor}
