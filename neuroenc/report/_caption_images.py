"""Thumbnails of evidence images as files beside the page."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import atomic_path
from neuroenc.data import read_picture
from neuroenc.report._html import Thumbnails

if TYPE_CHECKING:
    from neuroenc.data import Stimuli

__all__ = ["EvidenceImages"]

_PREFIX = "data:image/jpeg;base64,"


class EvidenceImages:
    """Thumbnails, captions and licences of stimuli; images are written once each, up to a budget.

    Parameters
    ----------
    folder : path
        Report; images go to ``folder/images``, named by their content.
    stimuli : Stimuli, optional
    images : mapping of stimulus id to path, array or PIL image, or callable id -> one of these or None, optional
        Looked at before ``stimuli``.
    budget : int
        Characters of base64 in all, about 4/3 of the bytes on disk.
    """

    def __init__(
        self,
        folder: Path,
        stimuli: Stimuli | None = None,
        images: Mapping[str, Any] | Callable[[str], Any] | None = None,
        budget: int = 60_000_000,
    ) -> None:
        if images is not None and not callable(images) and not isinstance(images, Mapping):
            raise ConfigError(
                f"images is a {type(images).__name__}; legal: a mapping of stimulus id to path, array or PIL image, or "
                "a function of the id."
            )
        self._folder = folder / "images"
        self._stimuli, self._images = stimuli, images
        self._thumbnails = Thumbnails(stimuli, budget)
        self._place = {} if stimuli is None else {str(s): n for n, s in enumerate(stimuli.ids)}
        self._done: dict[str, str | None] = {}
        self._left = budget
        self._lost: set[str] = set()
        self.written: set[str] = set()
        self.left_out = 0

    @property
    def unreadable(self) -> list[str]:
        """Stimuli whose image could not be read."""
        return sorted(self._lost | set(self._thumbnails.unreadable))

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
        """Path of the thumbnail from the report's folder, or None where there is none to show."""
        if stimulus not in self._done:
            self._done[stimulus] = self._write(stimulus)
        return self._done[stimulus]

    def describe(self, stimulus: str) -> dict[str, Any]:
        """``src`` and ``caption``, as far as known, for the page's data."""
        found = {"src": self.src(stimulus), "caption": self.caption(stimulus)}
        return {k: v for k, v in found.items() if v}

    def _write(self, stimulus: str) -> str | None:
        if self._left < 0:
            # Nothing fits any more: images are not even opened, of which a brain has tens of thousands.
            self.left_out += self._may_have(stimulus)
            return None
        content = self._own(stimulus)
        if content is None:
            uri = self._thumbnails.get(stimulus)
            content = base64.b64decode(uri[len(_PREFIX) :]) if uri else None
            if uri is None and stimulus in self._place and stimulus not in self._thumbnails.unreadable:
                self.left_out += self._stimuli is not None and self._stimuli.images is not None
        if content is None:
            return None
        self._left -= len(content) * 4 // 3
        if self._left < 0:
            self.left_out += 1
            return None
        # Named by content: a stimulus' id may be anything, and no two reports fight over a name.
        name = hashlib.sha256(content).hexdigest()[:16] + ".jpg"
        if name not in self.written:
            self._put(self._folder / name, content)
            self.written.add(name)
        return f"images/{name}"

    def _put(self, path: Path, content: bytes) -> None:
        """Whole or not at all, but not waited for until it is on the disk: thousands of files are written, and what
        the machine lost is written again by the next report."""
        if path.is_file() and path.stat().st_size == len(content):
            return  # of an earlier report: the name is the content's hash
        with atomic_path(path, sync=False) as temporary:
            temporary.write_bytes(content)

    def _may_have(self, stimulus: str) -> bool:
        if callable(self._images) or (self._images is not None and stimulus in self._images):
            return True
        return stimulus in self._place and self._stimuli is not None and self._stimuli.images is not None

    def _own(self, stimulus: str) -> bytes | None:
        if self._images is None:
            return None
        try:
            found = self._images(stimulus) if callable(self._images) else self._images.get(stimulus)
            if found is None:
                return None
            image, _ = read_picture(found, f"image of {stimulus!r}")
        except (OSError, DataError, TypeError, ValueError):
            self._lost.add(stimulus)
            return None
        image.thumbnail((96, 96))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=84, optimize=True)
        return buffer.getvalue()
