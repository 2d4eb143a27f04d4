"""Places: structures that fill the frame. ``(pen, colour, size)``, the pen spanning the whole picture.

``size`` is the structure's width as a fraction of the picture; the pen's (u, v) in [-1, 1] are the frame.
"""

from __future__ import annotations

from neuroenc.data.simulate._pen import RGB, Pen, shade

__all__ = ["PLACES"]

_WINDOW: RGB = (74, 104, 140)
_INK: RGB = (30, 26, 28)


def _house(p: Pen, colour: RGB, size: float, x: float) -> None:
    p.rect(-1.1, 0.55, 1.1, 1.1, (96, 158, 76))
    s = size * 0.82
    top, base = 0.75 - 1.15 * s, 0.78
    edge = shade(colour, 0.55)
    p.rect(x - s, top, x + s, base, colour, edge, 0.03)
    p.poly([(x - 1.15 * s, top), (x, top - 0.68 * s), (x + 1.15 * s, top)], (150, 62, 44), (92, 40, 30), 0.03)
    p.rect(x + 0.5 * s, top - 0.66 * s, x + 0.72 * s, top - 0.2 * s, (120, 60, 48))
    for u in (-0.58, 0.58):
        p.rect(
            x + (u - 0.22) * s,
            top + 0.22 * s,
            x + (u + 0.22) * s,
            top + 0.64 * s,
            _WINDOW,
            (248, 248, 244),
            0.04,
        )
        p.line([(x + u * s, top + 0.22 * s), (x + u * s, top + 0.64 * s)], (248, 248, 244), 0.03)
    p.rect(x - 0.2 * s, top + 0.45 * s, x + 0.2 * s, base, (96, 58, 36), _INK, 0.02)


def _church(p: Pen, colour: RGB, size: float, x: float) -> None:
    p.rect(-1.1, 0.6, 1.1, 1.1, (118, 150, 92))
    s = size * 0.85
    base = 0.8
    edge = shade(colour, 0.55)
    nave, tower = base - 0.8 * s, base - 1.15 * s
    p.poly(
        [
            (x - 0.3 * s, nave),
            (x + 0.1 * s, nave - 0.36 * s),
            (x + 0.85 * s, nave - 0.36 * s),
            (x + 1.0 * s, nave),
        ],
        (84, 88, 104),
    )
    p.rect(x - 0.3 * s, nave, x + 1.0 * s, base, colour, edge, 0.03)
    p.rect(x - 0.8 * s, tower, x - 0.2 * s, base, shade(colour, 0.9), edge, 0.03)
    p.poly(
        [(x - 0.88 * s, tower), (x - 0.5 * s, tower - 0.62 * s), (x - 0.12 * s, tower)],
        (84, 88, 104),
        edge,
        0.03,
    )
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
    for a in (
        (-1.1, -1.1, left, top),
        (1.1, -1.1, right, top),
        (-1.1, 1.1, left, low),
        (1.1, 1.1, right, low),
    ):
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
