"""One figure for a region, made for print: map, words, evidence, checks and sentence score, in one or two columns."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from neuroenc._core.checks import one_of
from neuroenc._core.files import atomic_path
from neuroenc._core.schema import VERDICTS
from neuroenc.captions import CaptionStudy
from neuroenc.data import Stimuli
from neuroenc.report import _regions as regions
from neuroenc.report._style import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    bare,
    drawing,
    figure_pdf,
    figure_png,
    figure_svg,
    number,
    short,
)
from neuroenc.report.brain._canvas import layouts
from neuroenc.report.explorer._cards import Pictures, best_rows
from neuroenc.report.explorer._data import VoxelTable, voxel_table
from neuroenc.stats import share_interval

#: Widths of printed columns, mm.
COLUMN_WIDTHS = {"single": 89.0, "double": 183.0}
_MM = 1 / 25.4
_TONES = {"supported": "#5fae86", "uncertain": "#c8cfd5", "unsupported": "#b8480b"}
_WORDS, _VOXELS, _IMAGES = 8, 3, 4
_SMALL = 6.3  # points
Maps = Sequence[Mapping[str, Any]]


def plot_region(
    study: CaptionStudy,
    roi: str,
    *,
    width: str = "double",
    stimuli: Stimuli | None = None,
    images: Mapping[str, Any] | Callable[[str], Any] | None = None,
) -> Any:
    """Draw one composed figure of a region's captions, for print.

    Panels: the region on the map of the subject who has most of its voxels; words of the best captions, by share of
    voxels with 95 % intervals, beside the share among all other voxels; the best predicted voxels with their captions
    and the images that drive them most; phrases that the checks support, do not, or cannot tell; sentence-level scores
    beside those of other voxels' captions. A panel without data is left out.

    Parameters
    ----------
    study : CaptionStudy
    roi : str
        A region of ``study.scores``, "no ROI", or "all voxels" where there are no regions.
    width : {"double", "single"}
        183 mm or 89 mm wide, as journals print.
    stimuli : neuroenc.data.Stimuli, optional
        Images and captions of the evidence.
    images : mapping of stimulus id to path, array or PIL image, or callable, optional
        Images that are not in ``stimuli``.

    Returns
    -------
    matplotlib.figure.Figure
        `figure_svg` and `figure_pdf` write it with its text as text.

    Raises
    ------
    ConfigError
        No such region, or a width that is not one of the two.

    Examples
    --------
    >>> import pandas as pd, xarray as xr
    >>> scores = xr.Dataset({"r": ("voxel", [0.5, 0.4])}, coords={"voxel": [7, 9], "roi": ("voxel", ["FFA", "PPA"])})
    >>> study = CaptionStudy(
    ...     "two voxels", scores,
    ...     captions=pd.DataFrame({"voxel": [7, 9], "rank": 1, "caption": ["a dog", "a house"], "score": 0.3}),
    ...     evidence=pd.DataFrame(columns=["voxel", "rank", "stimulus", "predicted"]),
    ...     gate=pd.DataFrame({"voxel": [7, 9], "captioned": True, "reason": ""}))
    >>> round(25.4 * plot_region(study, "FFA", width="single").get_figwidth())
    89
    """
    pictures = Pictures(stimuli, images, budget=2_000_000)
    return RegionFigures(study, voxel_table(study), pictures).draw(roi, width)


class RegionFigures:
    """Figures of the regions of one study; ``maps`` are `layouts` by subject, which are made where they are absent."""

    def __init__(
        self, study: CaptionStudy, voxels: VoxelTable, pictures: Pictures, maps: Mapping[str, Maps] | None = None
    ) -> None:
        self._study, self._voxels, self._pictures, self._maps = study, voxels, pictures, maps or {}
        self._masks = regions.memberships(study.scores)
        self._best = study.captions[study.captions["rank"] == 1] if len(study.captions) else study.captions

    def draw(self, roi: str, width: str = "double") -> Any:
        """The figure of a region."""
        one_of("width", width, COLUMN_WIDTHS)
        mask = self._masks[one_of("region", roi, list(self._masks))]
        frame = self._voxels.frame
        inside = frame["voxel"][mask]
        words = self._words(frame["voxel"][mask & frame["captioned"]], frame["voxel"][~mask & frame["captioned"]])
        shown = best_rows(self._voxels, np.flatnonzero(mask), _VOXELS if width == "double" else 2)
        place = self._place(mask)
        double = width == "double"
        self._letters = iter("abcde")
        tall = 2.1 if double else 1.55
        checks = self._checks(inside)
        rho = "rho" in frame and bool(frame.loc[mask, "rho"].notna().any())
        rows = max(len(shown), 1)
        below = 0.25 + 0.62 * rows
        side = 0.72 * bool(checks) + 0.95 * rho
        wide = COLUMN_WIDTHS[width] * _MM
        heights = [0.5, tall, below] if double else [0.5, tall * bool(place), 1.75 if words else 0.0, below, side]
        if double:
            heights[2] = max(below, side)
        total = sum(heights) + 0.1
        with drawing(wide, total) as figure:
            sheet = _Sheet(figure, wide, total)
            self._title(sheet, roi, mask)
            top = total - heights[0]
            half = wide / 2 - 0.1
            if double:
                if place:
                    self._map(sheet.panel(0.05, top - tall + 0.1, half, tall - 0.28), place, roi)
                if words:
                    self._draw_words(
                        sheet.panel(wide / 2 + 0.85, top - tall + 0.42, half - 0.85, tall - 0.6), words, roi
                    )
                self._evidence(sheet, shown, 0.05, top - tall - 0.2, 4.7)
                left, top = 5.35, top - tall
            else:
                if place:
                    self._map(sheet.panel(0.05, top - tall + 0.1, wide - 0.1, tall - 0.25), place, roi)
                    top -= heights[1]
                if words:
                    self._draw_words(sheet.panel(0.85, top - 1.37, wide - 1.0, 1.2), words, roi)
                    top -= heights[2]
                self._evidence(sheet, shown, 0.05, top - 0.2, wide - 0.1)
                left, top = 0.85, top - below
            if checks:
                self._draw_checks(sheet.panel(left, top - 0.57, wide - left - 0.12, 0.36), checks, roi)
                top -= 0.72
            if rho:
                self._sentence(sheet.panel(left, top - 0.72, wide - left - 0.12, 0.5), frame[mask])
        return figure

    def alt(self, roi: str) -> str:
        """The figure in words, with numbers."""
        mask, frame = self._masks[roi], self._voxels.frame
        words = self._words(frame["voxel"][mask & frame["captioned"]], frame["voxel"][~mask & frame["captioned"]])
        named = ", ".join(f"{word} {number(share, 'share')}" for word, share, *_ in words)
        return f"{roi}: words by share of voxels: {named or 'none'}."

    def _title(self, sheet: _Sheet, roi: str, mask: np.ndarray) -> None:
        frame = self._voxels.frame[mask]
        n = frame["subject"].nunique()
        said = f"{len(frame):,} voxels" + (f" of {n} subjects" if n > 1 else "")
        r = number(regions.median(frame["r"].to_numpy()), digits=2)
        said += f", {int(frame['captioned'].sum()):,} captioned; median r {r}"
        ratio = regions.median(frame["r_normalised"].to_numpy())
        said += f", {number(ratio, 'share')} of the ceiling" if np.isfinite(ratio) else ""
        sheet.write(0.05, sheet.tall - 0.2, short(roi, 40), size=10, weight="bold")
        sheet.write(0.05, sheet.tall - 0.36, said, size=_SMALL + 0.4, color=MUTED)

    def _head(self, axes: Any, text: str) -> None:
        said = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": _SMALL + 0.7, "color": INK}
        axes.annotate(f"{next(self._letters)}  {text}", (0, 1), (-0.5, 3), weight="bold", **said)

    # -- what is shown -----------------------------------------------------------------------------------------------
    def _words(self, inside: Any, others: Any) -> list[tuple[str, float, float, float, float]]:
        """Words with their share of voxels, its interval, and the share elsewhere."""
        own = self._best[self._best["voxel"].isin(inside)]
        if own.empty:
            return []
        rest = self._best[self._best["voxel"].isin(others)]
        elsewhere = dict(regions.frequent_words(rest, n=10**6)) if len(rest) else {}
        found = regions.frequent_words(own, n=_WORDS)
        n = own["voxel"].nunique()
        low, high = share_interval([round(share * n) for _, share in found], n)
        other = [elsewhere.get(word, 0.0 if len(rest) else np.nan) for word, _ in found]
        return [(word, share, *limits) for (word, share), *limits in zip(found, low, high, other)]

    def _place(self, mask: np.ndarray) -> tuple[Mapping[str, Any], np.ndarray, str] | None:
        """First map of the subject with most voxels in the region, which of its dots are inside, and who it is."""
        subject = self._voxels.frame["subject"]
        name = subject[mask].value_counts().index[0]
        rows = np.flatnonzero(subject == name)
        maps = self._maps[name] if name in self._maps else layouts(self._study.scores.isel(voxel=rows))[0]
        if not maps:
            return None
        return maps[0], mask[rows][np.asarray(maps[0]["voxel"], int)], str(name)

    def _checks(self, inside: Any) -> list[tuple[str, np.ndarray, int]]:
        told = self._study.phrases
        if told is None:
            return []
        mine = told["voxel"].isin(inside)
        parts = [("here", told.loc[mine, "verdict"]), ("other voxels", told.loc[~mine, "verdict"])]
        return [(k, np.array([(v == name).mean() for name in VERDICTS]), len(v)) for k, v in parts if len(v)]

    # -- panels ------------------------------------------------------------------------------------------------------
    def _map(self, axes: Any, place: tuple[Mapping[str, Any], np.ndarray, str], roi: str) -> None:
        one, inside, subject = place
        wide, tall = one["width"], one["height"]
        if one["background"] is not None:
            with Image.open(BytesIO(one["background"])) as picture:
                axes.imshow(picture.convert("RGB"), extent=(0, wide, tall, 0), interpolation="bilinear")
        for x, y, w, h in one.get("frames", ()):
            axes.plot([x, x + w, x + w, x, x], [y, y, y + h, y + h, y], color=FAINT, lw=0.4)
        axes.set(xlim=(0, wide), ylim=(tall, 0), aspect="equal", anchor="NW")
        bare(axes)
        axes.set(xticks=[], yticks=[])
        x, y = np.asarray(one["x"]), np.asarray(one["y"])
        # Points of a unit of the map, from the width that the axes have on paper.
        box = axes.get_position()
        inch = min(box.width * axes.figure.get_figwidth() / wide, box.height * axes.figure.get_figheight() / tall)
        size = (np.max(one["size"]) * inch * 72 * (1 if one["shape"] == "cell" else 1.4)) ** 2
        marker = "s" if one["shape"] == "cell" else "o"
        for mine, colour in ((~inside, "#c3cad0"), (inside, BLUE)):
            axes.scatter(x[mine], y[mine], s=max(size, 0.6), c=colour, marker=marker, lw=0, rasterized=True)
        who = f", {short(subject, 24)}" if subject else ""
        self._head(axes, f"{short(roi, 24)} on the map{who}")

    def _draw_words(self, axes: Any, words: Sequence[tuple[str, float, float, float, float]], roi: str) -> None:
        y = np.arange(len(words))
        _, share, low, high, other = zip(*words)
        axes.hlines(y, low, high, color=BLUE, lw=1.1)
        axes.plot(share, y, "o", ms=3.4, mew=0, color=BLUE, label=short(roi, 18))
        if np.isfinite(other).any():
            axes.plot(other, y, "o", ms=3.2, mew=0.8, mfc="white", mec=MUTED, label="other voxels")
        axes.set(ylim=(len(words) - 0.4, -0.6), xlim=(0, min(1.0, 1.05 * max(*high, *np.nan_to_num(other)))))
        axes.set_yticks(y, [short(word, 16) for word, *_ in words])
        axes.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
        axes.locator_params(axis="x", nbins=5)
        _small(axes)
        axes.set_xlabel("share of voxels (95 % interval)", fontsize=_SMALL, labelpad=2)
        axes.legend(fontsize=_SMALL, frameon=False, loc="lower right", handletextpad=0.2, borderaxespad=0.1)
        self._head(axes, "Words of the best captions")

    def _evidence(self, sheet: _Sheet, rows: np.ndarray, left: float, top: float, wide: float) -> None:
        if not len(rows):
            return
        sheet.write(
            left,
            top + 0.08,
            f"{next(self._letters)}  Best predicted voxels: caption, images that drive them most",
            _SMALL + 0.7,
            weight="bold",
        )
        room = wide - _IMAGES * 0.56 - 0.1
        names = self._study.evidence["stimulus"].astype(str).to_numpy(object)
        for line, row in enumerate(rows):
            at = top - 0.62 * (line + 1)
            voxel, r = self._voxels.frame["voxel"].iloc[row], self._voxels.frame["r"].iloc[row]
            caption = str(self._best.loc[self._best["voxel"] == voxel, "caption"].iloc[0])
            # About 23 letters of this size are an inch.
            lines = wrap(caption, max(int(room * 22), 8))
            if len(lines) > 4:
                lines = [*lines[:3], short(" ".join(lines[3:]), max(int(room * 22), 8))]
            sheet.write(
                left, at + 0.5, f"voxel {short(voxel, 16)}, r {number(float(r), digits=2)}", _SMALL - 0.3, color=MUTED
            )
            for k, text in enumerate(lines):
                sheet.write(left, at + 0.39 - 0.105 * k, text, _SMALL + 0.2)
            found = [names[k] for k in self._voxels.evidence.get(voxel, np.zeros(0, int))]
            pictures = [p for p in map(self._pictures.picture, found[: 2 * _IMAGES]) if p is not None][:_IMAGES]
            for k, picture in enumerate(pictures):
                axes = sheet.panel(left + wide - (_IMAGES - k) * 0.56, at + 0.04, 0.54, 0.54)
                axes.imshow(picture, interpolation="bilinear")
                axes.set(xticks=[], yticks=[])
                bare(axes)

    def _draw_checks(self, axes: Any, checks: Sequence[tuple[str, np.ndarray, int]], roi: str) -> None:
        for y, (_, shares, _) in enumerate(checks):
            start = 0.0
            for verdict, share in zip(VERDICTS, shares):
                axes.barh(y, share, left=start, height=0.72, color=_TONES[verdict], lw=0)
                if share > 0.13:
                    tone = "white" if verdict == "unsupported" else INK
                    axes.text(
                        start + share / 2,
                        y,
                        number(share, "share"),
                        ha="center",
                        va="center",
                        fontsize=_SMALL - 0.5,
                        color=tone,
                    )
                start += share
        axes.set(xlim=(0, 1), ylim=(len(checks) - 0.5, -0.5), xticks=[])
        axes.set_yticks(range(len(checks)), [short(roi, 14) if k == "here" else k for k, *_ in checks])
        _small(axes)
        bare(axes)
        for verdict, at, side in zip(VERDICTS, (0.0, 0.5, 1.0), ("left", "center", "right")):
            axes.text(
                at,
                -0.02,
                verdict,
                color=_TONES[verdict] if verdict != "uncertain" else MUTED,
                ha=side,
                va="top",
                fontsize=_SMALL - 0.3,
                transform=axes.transAxes,
            )
        self._head(axes, f"Phrases, checked (n = {checks[0][2]:,})")

    def _sentence(self, axes: Any, frame: Any) -> None:
        null = "shuffled" if "shuffled" in frame else None
        rows = [("own caption", frame["rho"].dropna().to_numpy(float), BLUE)]
        if null is not None and frame[null].notna().any():
            rows.append(("other voxels'", frame[null].dropna().to_numpy(float), MUTED))
        for y, (_, values, colour) in enumerate(rows):
            # Spread by rank, so that the picture is the same each time.
            jitter = 0.22 * np.sin(np.arange(len(values)) * 2.4)
            axes.plot(
                np.sort(values), y + jitter, ".", ms=2.6, mew=0, color=colour, alpha=0.55, rasterized=len(values) > 500
            )
            axes.plot([np.median(values)] * 2, [y - 0.36, y + 0.36], color=INK, lw=1.2)
        axes.axvline(0, color=FAINT, lw=0.8, zorder=0)
        axes.set(ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.locator_params(axis="x", nbins=5)
        _small(axes)
        axes.set_xlabel("sentence-level ρ (line: median)", fontsize=_SMALL, labelpad=2)
        self._head(axes, "Captions against responses")


class _Sheet:
    """A figure measured in inches from its lower left corner."""

    def __init__(self, figure: Any, wide: float, tall: float) -> None:
        self.figure, self.wide, self.tall = figure, wide, tall

    def panel(self, left: float, bottom: float, wide: float, tall: float) -> Any:
        return self.figure.add_axes((left / self.wide, bottom / self.tall, wide / self.wide, tall / self.tall))

    def write(self, left: float, bottom: float, text: str, size: float, **more: Any) -> None:
        self.figure.text(left / self.wide, bottom / self.tall, text, fontsize=size, **more)


def _small(axes: Any) -> None:
    axes.tick_params(labelsize=_SMALL, length=2, pad=2, width=0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def write_region_figure(
    run: str | os.PathLike[str], roi: str, file: str | os.PathLike[str], *, width: str = "double"
) -> Path:
    """Write the figure of a region from the folder of a finished run; see `plot_region`.

    Parameters
    ----------
    run : path
        Folder of ``neuroenc caption`` or ``demo`` (with ``study/``, and ``report/`` for the images).
    roi : str
    file : path
        Ends in .svg, .pdf or .png; text in the first two is text.
    width : {"double", "single"}

    Returns
    -------
    pathlib.Path
        ``file``.

    Raises
    ------
    ConfigError
        Another kind of file, or no such region.
    DataError
        No caption study stands in ``run``.

    Examples
    --------
    >>> write_region_figure("no-such-run", "FFA", "ffa.svg")
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: no-such-run/study holds no caption study: ...
    """
    out, run = Path(file), Path(run)
    kind = one_of("kind of file", out.suffix.lower(), _WRITERS)
    study = CaptionStudy.load(run / "study")
    listed = run / "report" / "thumbnails.csv"
    shown = pd.read_csv(listed, dtype=str, keep_default_na=False) if listed.is_file() else None
    images = {} if shown is None else dict(zip(shown["stimulus"], (run / "report" / x for x in shown["file"])))
    with atomic_path(out) as temporary:
        temporary.write_bytes(_WRITERS[kind](plot_region(study, roi, width=width, images=images)))
    return out


def _png(figure: Any) -> bytes:
    return figure_png(figure, dpi=300)


_WRITERS = {".svg": figure_svg, ".pdf": figure_pdf, ".png": _png}
