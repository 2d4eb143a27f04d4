"""Voxels as static cards: captions with their phrases marked, thumbnails, accuracy against ceiling."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import CaptionStudy
from neuroenc.data import Stimuli, read_picture
from neuroenc.report._style import joined, place_of
from neuroenc.report.explorer._data import VoxelTable, overlay

#: What tables of answers are called, by their level.
LEVEL_HEADINGS = {"image": "Stimuli", "caption": "Captions", "phrase": "Phrases", "category": "Categories"}
SIDE = 96  # pixels, shown at 64 CSS pixels


class Pictures:
    """Thumbnails, captions and licence of stimuli, until ``budget`` characters of base64 (4/3 of the bytes) are spent.

    Parameters
    ----------
    images : mapping of stimulus id to path, array or PIL image, or callable id -> one of these or None, optional
        Looked at before ``stimuli``.

    Attributes
    ----------
    files : dict of path to bytes
        What was made; the paths are what `src` returns.
    """

    def __init__(
        self,
        stimuli: Stimuli | None = None,
        images: Mapping[str, Any] | Callable[[str], Any] | None = None,
        *,
        budget: int,
    ) -> None:
        if images is not None and not callable(images) and not isinstance(images, Mapping):
            raise ConfigError(
                f"images is a {type(images).__name__}; legal: a mapping of stimulus id to path, array or PIL image, or "
                "a function of the id."
            )
        self._stimuli, self._images, self._left = stimuli, images, budget
        self._place = {} if stimuli is None else {str(s): n for n, s in enumerate(stimuli.ids)}
        self._done: dict[str, str | None] = {}
        self._lost: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.left_out = 0

    @property
    def remarks(self) -> list[str]:
        """What could not be read, and what was left out."""
        said = []
        if self._lost:
            said.append(f"{len(self._lost)} evidence images could not be read: {joined(sorted(self._lost))}.")
        if self.left_out:
            said.append(f"{self.left_out:,} evidence images are named but not shown, to keep the report small.")
        return said

    @property
    def licence(self) -> str:
        """Source and licence of the stimuli, as far as they say."""
        parts = [] if self._stimuli is None else [self._stimuli.source, self._stimuli.licence]
        return "; ".join(x for x in parts if x)

    def caption(self, stimulus: str) -> str:
        """First caption of a stimulus, "" where none is known."""
        n = self._place.get(stimulus)
        if n is None or self._stimuli is None or self._stimuli.captions is None:
            return ""
        return self._stimuli.captions[n][0] if self._stimuli.captions[n] else ""

    def src(self, stimulus: str) -> str | None:
        """Where the thumbnail is, or None where there is none to show."""
        if stimulus not in self._done:
            self._done[stimulus] = self._make(stimulus)
        return self._done[stimulus]

    def picture(self, stimulus: str) -> Any:
        """The thumbnail as a PIL image, None where there is none to show."""
        src = self.src(stimulus)
        return None if src is None else Image.open(io.BytesIO(self.files[src]))

    def table(self) -> pd.DataFrame:
        """Which file shows which stimulus: ``stimulus, file``."""
        made = [(stimulus, src) for stimulus, src in self._done.items() if src]
        return pd.DataFrame(made, columns=["stimulus", "file"])

    def describe(self, stimulus: str) -> dict[str, Any]:
        """``src`` and ``caption``, as far as known."""
        found = {"src": self.src(stimulus), "caption": self.caption(stimulus)}
        return {k: v for k, v in found.items() if v}

    def _make(self, stimulus: str) -> str | None:
        if self._left < 0:
            # Nothing fits any more: images are not even opened, of which a brain has tens of thousands.
            self.left_out += self._has(stimulus)
            return None
        try:
            # One lost file must not cost the report of a long run; the page names how many are missing.
            image = self._open(stimulus)
        except (OSError, DataError, TypeError, ValueError):
            self._lost.add(stimulus)
            return None
        if image is None:
            return None
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=84, optimize=True)
        content = buffer.getvalue()
        self._left -= len(content) * 4 // 3
        if self._left < 0:
            self.left_out += 1
            return None
        # Named by content: a stimulus' id may be anything, and no two reports fight over a name.
        name = f"images/{hashlib.sha256(content).hexdigest()[:16]}.jpg"
        self.files[name] = content
        return name

    def _has(self, stimulus: str) -> bool:
        if callable(self._images) or (self._images is not None and stimulus in self._images):
            return True
        return stimulus in self._place and self._stimuli is not None and self._stimuli.images is not None

    def _open(self, stimulus: str) -> Any:
        if self._images is not None:
            found = self._images(stimulus) if callable(self._images) else self._images.get(stimulus)
            if found is not None:
                return read_picture(found, f"image of {stimulus!r}")[0]
        if self._stimuli is None or self._stimuli.images is None or stimulus not in self._place:
            return None
        return self._stimuli.image(self._place[stimulus])


def segments(text: str, phrases: Iterable[tuple[int, int, str]]) -> list[dict[str, str]]:
    """The caption in pieces, each with its verdict ("" outside phrases); an overlapping phrase is cut short.

    >>> segments("a red dog", [(2, 9, "supported")])
    [{'text': 'a ', 'verdict': ''}, {'text': 'red dog', 'verdict': 'supported'}]
    """
    out: list[dict[str, str]] = []
    at = 0
    for start, end, verdict in sorted(phrases):
        start = max(start, at)
        if end <= start:
            continue
        if start > at:
            out.append({"text": text[at:start], "verdict": ""})
        out.append({"text": text[start:end], "verdict": verdict})
        at = end
    if at < len(text):
        out.append({"text": text[at:], "verdict": ""})
    return out


def best_rows(table: VoxelTable, rows: np.ndarray, n: int) -> np.ndarray:
    """The ``n`` best predicted captioned voxels among ``rows``."""
    has = np.array([v in table.captions for v in table.frame["voxel"].to_numpy()[rows]], bool)
    rows = rows[has] if len(rows) else rows
    r = table.frame["r"].to_numpy()[rows]
    return rows[np.argsort(-np.where(np.isfinite(r), r, -np.inf), kind="stable")][:n]


def answer_text(answer: Any, prefix: str) -> str:
    """An answer of a search as a reader needs it: a caption of it, and its id where that is another text."""
    name, text = str(answer[f"{prefix}id"]), str(answer.get(f"{prefix}text", ""))
    return name if text in ("", name) else f"{text} ({name})"


def voxel_cards(study: CaptionStudy, table: VoxelTable, rows: Iterable[int], images: Pictures) -> list[dict[str, Any]]:
    """What the template shows of each voxel in ``rows`` of the table: three captions, and six images."""
    scored = [(f"stability, {kind}", f"stability:{kind}", f"stability:{kind}_null") for kind in table.stability]
    scored += [("sentence-level ρ", "rho", "shuffled"), ("image-level ρ", "image_rho", "image_shuffled")]
    cards: list[dict[str, Any]] = []
    none = np.zeros(0, int)
    for v in rows:
        line: dict[Any, Any] = table.frame.iloc[int(v)].to_dict()
        voxel = line["voxel"]
        told = [] if study.phrases is None else study.phrases.iloc[table.phrases.get(voxel, none)].to_dict("records")
        captions = study.captions.iloc[table.captions.get(voxel, none)[:3]].to_dict("records")
        for one in captions:
            spans = [(int(p["start"]), int(p["end"]), p["verdict"]) for p in told if p["rank"] == one["rank"]]
            one["parts"] = segments(str(one["caption"]), spans)
        shown = study.evidence.iloc[table.evidence.get(voxel, none)[:6]]
        placed = shown["places"].astype(str) if "places" in shown else [""] * len(shown)
        where = (line["subject"], line["roi"].replace(";", ", "), place_of(study.scores, int(v)))
        card: dict[str, Any] = {"where": " · ".join(x for x in where if x), "captions": captions}
        card["scored"] = [(name, line[c], line[null]) for name, c, null in scored if np.isfinite(line.get(c, np.nan))]
        card["retrieved"] = []
        if study.retrieved is not None:
            found = study.retrieved[(study.retrieved["voxel"] == voxel) & (study.retrieved["rank"] == 1)]
            card["retrieved"] = [
                {"level": one["level"], "ngrams": one["ngrams"]}
                | {"found": answer_text(one, ""), "words": answer_text(one, "bm25_")}
                for one in found.to_dict("records")
            ]
        card["folds"] = []
        if study.folds is not None:
            mine = study.folds.loc[study.folds["voxel"] == voxel, "caption"]
            card["folds"], card["n_folds"] = list(mine.value_counts(sort=False).items()), len(mine)
        # Of the best caption.
        card["phrases"] = [p for p in told if captions and p["rank"] == captions[0]["rank"]]
        card["images"] = [
            images.describe(s) | {"id": s, "predicted": float(p)} | ({"heat": overlay(where)} if where else {})
            for s, p, where in zip(shown["stimulus"].astype(str), shown["predicted"], placed)
        ]
        cards.append(line | card)
    return cards
