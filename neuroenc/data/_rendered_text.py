"""Texts as stimuli: pictures of words and sentences, and texts that are misspelt, shuffled or scrambled."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageColor, ImageDraw, ImageFont

from neuroenc._core.checks import check_texts, check_whole, one_of, share
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import check_readable_file
from neuroenc.data._stimuli import Stimuli

#: Kinds of perturbation, and the share of letters, words or gaps that each changes if no rate is given.
PERTURBATIONS = {"typo": 0.1, "shuffle": 1.0, "space": 0.2, "scramble": 1.0}
#: Pixels between a text and the edge of its picture.
_MARGIN = 2
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@lru_cache(maxsize=16)
def _font(font: str | None, size: int) -> Any:
    """The font that Pillow brings, or that of a TrueType file, at ``size`` pixels."""
    if font is None:
        return ImageFont.load_default(size)
    path = check_readable_file(Path(font).expanduser(), "font:")
    try:
        return ImageFont.truetype(str(path), size)
    except OSError as error:
        raise DataError(
            f"font {path} cannot be read: {error}. Next step: a TrueType or OpenType file, or font=None."
        ) from None


def _lines(text: str, font: Any, width: int, wrap: bool) -> list[str]:
    """Lines of at most ``width`` pixels, broken at spaces; a word that is wider has a line of its own."""
    if not wrap:
        return text.splitlines()
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _draw(text: str, how: Mapping[str, Any]) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Picture of one text, and the box that it fills; ``how`` has the settings of `render_text`."""
    size, position, wrap = how["size"], how["position"], how["wrap"]
    height, width = how["shape"]
    face = _font(None if how["font"] is None else os.fspath(how["font"]), size)
    lines = _lines(text, face, width - 2 * _MARGIN, wrap)
    picture = Image.new("RGB", (width, height), how["background"])
    pen = ImageDraw.Draw(picture)
    # Lines are as high as the font, so that the same words lie at the same places whatever their letters.
    ascent, descent = face.getmetrics()
    step = ascent + descent
    widths = [face.getlength(line) for line in lines]
    needed = int(np.ceil(max(widths))), step * len(lines)
    left, top = position[0] * width - needed[0] / 2, position[1] * height - needed[1] / 2
    box = (int(np.floor(left)), int(np.floor(top)), int(np.ceil(left)) + needed[0], int(np.ceil(top)) + needed[1])
    if not how["clip"] and (box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height):
        fits = min((width - 2 * _MARGIN) / needed[0], height / needed[1])
        larger = max(height, needed[1]), max(width, needed[0] + 2 * _MARGIN)
        step_out = "a position nearer to the centre" if fits >= 1 else f"shape={larger}, or size={int(size * fits)}"
        raise DataError(
            f"text {text[:60]!r} does not fit: at size {size} it needs {needed[0]} x {needed[1]} pixels (width x "
            f"height), about position {tuple(position)} of a picture of {width} x {height}"
            f"{'' if wrap else ', without line breaks'}. Next step: {step_out}; clip=True cuts it."
        )
    for n, (line, length) in enumerate(zip(lines, widths)):
        x = round(position[0] * width - length / 2)
        pen.text((x, round(top) + n * step), line, fill=how["colour"], font=face, align="center")
    return picture, box


def _check(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of `render_text`, if all are legal."""
    size, shape, position = settings["size"], settings["shape"], settings["position"]
    check_whole("size", size)
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != 2:
        raise ConfigError(f"shape={shape!r} is not legal; expected (height, width) in pixels.")
    for name, value in zip(("height", "width"), shape):
        check_whole(name, value, least=8)
    if not isinstance(position, Sequence) or isinstance(position, str) or len(position) != 2:
        raise ConfigError(f"position={position!r} is not legal; expected shares (right, down), such as (0.5, 0.5).")
    for name, value in zip(("position, right,", "position, down,"), position):
        share(name, value)
    for name in ("colour", "background"):
        try:
            ImageColor.getrgb(settings[name])
        except (ValueError, AttributeError, TypeError):
            raise ConfigError(
                f"{name}={settings[name]!r} is no colour; legal are names (\"black\"), '#rrggbb', 'rgb(r, g, b)'."
            ) from None
    return settings


def render_text(
    texts: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    font: str | os.PathLike[str] | None = None,
    size: int = 24,
    position: tuple[float, float] = (0.5, 0.5),
    shape: tuple[int, int] = (224, 224),
    colour: str = "black",
    background: str = "white",
    wrap: bool = True,
    clip: bool = False,
) -> Stimuli:
    """Render words or sentences as pictures, a stimulus each, whose caption is the text.

    Parameters
    ----------
    texts : sequence of str (n,)
    ids : sequence of str (n,), optional
        Stimulus ids. Default: the texts, on one line.
    font : path, optional
        TrueType or OpenType file. Default: the font that Pillow brings, which needs no file.
    size : int
        Of the font, pixels.
    position : (float, float)
        Where the centre of the text lies: shares of the picture's width (rightwards) and height (downwards).
    shape : (int, int)
        Height and width of the pictures, pixels.
    colour, background : str
        Names, "#rrggbb", or any other colour that Pillow knows.
    wrap : bool
        Whether a text that is wider than the picture is broken into lines between words.
    clip : bool
        Cut what does not fit at the edges of the picture, instead of refusing it.

    Returns
    -------
    Stimuli
        uint8 pictures (n, y, x, 3); ``table`` has the box that each text fills: ``left, top, right, bottom``, pixels.

    Raises
    ------
    DataError
        A text is empty or does not fit: the pixels that it needs are told. Two texts are equal and there are no ids.

    References
    ----------
    Rust et al. (2023), Language modelling with pixels, arXiv:2207.06991.

    Examples
    --------
    >>> words = render_text(["house", "a red house"], shape=(64, 128))
    >>> words.ids.tolist(), words.images.shape
    (['house', 'a red house'], (2, 64, 128, 3))
    >>> render_text(["extraordinarily"], shape=(64, 64))
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: text 'extraordinarily' does not fit: at size 24 it needs ...
    """
    listed = check_texts(texts, "texts")
    empty = [n for n, t in enumerate(listed) if not t.strip()]
    if empty or not listed:
        raise DataError(f"{len(empty)} of {len(listed)} texts are empty; at least one letter is needed of each.")
    names = [" ".join(t.split()) for t in listed] if ids is None else list(ids)
    twice = sorted({x for x in names if names.count(x) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(f"{len(twice)} ids occur more than once, first {twice[0]!r}. Next step: ids=, one a text.")
    words = {"size": size, "font": font, "position": position, "wrap": wrap, "clip": clip}
    how = _check(words | {"shape": shape, "colour": colour, "background": background})
    images, boxes = np.empty((len(listed), *shape, 3), np.uint8), []
    for n, text in enumerate(listed):
        picture, box = _draw(text, how)
        images[n] = np.asarray(picture)
        boxes.append(box)
    table = pd.DataFrame(boxes, columns=["left", "top", "right", "bottom"], index=names)
    return Stimuli(names, images, [[t] for t in listed], table, "rendered text")  # type: ignore[arg-type]


def perturb_text(
    texts: Sequence[str],
    kind: str = "typo",
    rate: float | None = None,
    *,
    keep_first: bool = False,
    seed: int = 0,
) -> list[str]:
    """Perturb texts as a hasty typist would, or beyond reading.

    What happens to a text depends on the text, ``kind``, ``rate`` and ``seed`` alone, whatever the others are. At least
    one change is made where there is something to change.

    Parameters
    ----------
    texts : sequence of str (n,)
    kind : {"typo", "shuffle", "space", "scramble"}
        - "typo": letters are exchanged with the next, preceded by a wrong one, left out, or replaced;
        - "shuffle": words change places;
        - "space": spaces between words are left out, and others put into words, at even odds;
        - "scramble": the letters within words are shuffled.
    rate : float, optional
        Share of letters ("typo"), of words ("shuffle", "scramble") or of the gaps between words ("space"). Default: a
        tenth of the letters, all words, a fifth of the gaps.
    keep_first : bool
        Of "typo" and "scramble": leave the first letter of every word.
    seed : int

    Returns
    -------
    list of str (n,)

    Raises
    ------
    ConfigError
        An unknown kind, a rate outside of 0 to 1, or ``keep_first`` with a kind that keeps letters anyway.

    References
    ----------
    Xiao et al. (2024), Pixel Sentence Representation Learning, arXiv:2402.08183.

    Examples
    --------
    >>> perturb_text(["a red house near a lake"], "shuffle")
    ['near a lake house a red']
    >>> text = "a red house near a lake"
    >>> perturb_text([text], seed=1) == perturb_text(["others", text], seed=1)[1:]
    True
    """
    listed = check_texts(texts, "texts")
    one_of("kind", kind, PERTURBATIONS)
    amount = PERTURBATIONS[kind] if rate is None else share("rate", rate)
    check_whole("seed", seed, least=0)
    if keep_first and kind not in ("typo", "scramble"):
        raise ConfigError(f'keep_first=True with kind="{kind}", which changes no letters. Next step: leave it out.')
    change: dict[str, Callable[..., str]] = {"shuffle": _shuffle, "space": _space}
    made = []
    for text in listed:
        digest = hashlib.sha256(f"{kind}\0{text}".encode("utf-8", "replace")).digest()[:8]
        rng = np.random.default_rng([seed, int.from_bytes(digest, "little")])
        if not amount:
            made.append(text)
        elif kind in change:
            made.append(change[kind](text, amount, rng))
        else:
            made.append((_typo if kind == "typo" else _scramble)(text, amount, rng, keep_first))
    return made


def _some(rng: np.random.Generator, of: Sequence[int], rate: float, least: int = 1) -> list[int]:
    """A share of ``of``, at least ``least`` where there are as many."""
    number = min(len(of), max(least, round(rate * len(of))))
    return sorted(int(x) for x in rng.choice(np.asarray(of, int), number, replace=False)) if number else []


def _typo(text: str, rate: float, rng: np.random.Generator, keep_first: bool) -> str:
    letters = list(text)
    legal = [
        n for n, c in enumerate(text) if c.isalnum() and not (keep_first and (n == 0 or not text[n - 1].isalnum()))
    ]
    # From behind, so that what is inserted or left out moves no place that is still to come.
    for n in reversed(_some(rng, legal, rate)):
        what = str(rng.choice(["swap", "insert", "delete", "replace"]))
        wrong = _LETTERS[rng.integers(26)]
        if wrong == letters[n].lower():
            wrong = _LETTERS[(_LETTERS.index(wrong) + 1) % 26]
        wrong = wrong.upper() if letters[n].isupper() else wrong
        following = letters[n + 1] if n + 1 < len(letters) else " "
        if what == "swap" and following.isalnum() and following != letters[n]:
            letters[n], letters[n + 1] = following, letters[n]
        elif what == "insert":
            letters.insert(n + keep_first, wrong)
        elif what == "delete" and (following.isalnum() or (n and letters[n - 1].isalnum())):
            del letters[n]
        else:
            letters[n] = wrong
    return "".join(letters)


def _shuffle(text: str, rate: float, rng: np.random.Generator) -> str:
    words = text.split()
    chosen = _some(rng, range(len(words)), rate, least=2)
    if len({words[n] for n in chosen}) < 2:
        return " ".join(words)
    order = chosen
    while [words[n] for n in order] == [words[n] for n in chosen]:
        order = [int(x) for x in rng.permutation(chosen)]
    found = list(words)
    for at, n in zip(chosen, order):
        found[at] = words[n]
    return " ".join(found)


def _space(text: str, rate: float, rng: np.random.Generator) -> str:
    gaps = [n for n, c in enumerate(text) if c == " "]
    within = [n for n in range(1, len(text)) if text[n - 1].isalnum() and text[n].isalnum()]
    letters = list(text)
    number = max(1, round(rate * len(gaps)))
    for _ in range(number):
        if gaps and (not within or rng.random() < 0.5):
            letters[gaps.pop(int(rng.integers(len(gaps))))] = ""
        elif within:
            n = within.pop(int(rng.integers(len(within))))
            letters[n] = f" {letters[n]}"
    return "".join(letters)


def _scramble(text: str, rate: float, rng: np.random.Generator, keep_first: bool) -> str:
    pieces: list[list[int]] = []
    for n, c in enumerate(text):
        if c.isalnum():
            if n and text[n - 1].isalnum():
                pieces[-1].append(n)
            else:
                pieces.append([n])
    pieces = [p[1:] if keep_first else p for p in pieces]
    # A word of one letter, or of equal ones, has no other order.
    pieces = [p for p in pieces if len({text[n] for n in p}) > 1]
    letters = list(text)
    for piece in (pieces[n] for n in _some(rng, range(len(pieces)), rate)):
        order = piece
        while [text[n] for n in order] == [text[n] for n in piece]:
            order = [int(x) for x in rng.permutation(piece)]
        for at, n in zip(piece, order):
            letters[at] = text[n]
    return "".join(letters)
