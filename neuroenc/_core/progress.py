"""Progress bars for notebooks and terminals, and how long a long loop will take."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# Seconds that a rate is measured over, and those from which a user wants to know beforehand.
_MEASURED, _LONG = 2.0, 30.0


class _Told:
    """Who is told how long a loop will take, and the outermost loop that runs."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.outermost: Any = None


_TOLD: ContextVar[_Told | None] = ContextVar("told", default=None)


@contextmanager
def telling(say: Callable[[str], None]) -> Iterator[None]:
    """Loops inside the block say about how long they will take, if that is long, as soon as their rate is known."""
    token = _TOLD.set(_Told(say))
    try:
        yield
    finally:
        _TOLD.reset(token)


def duration(seconds: float) -> str:
    """A duration for a sentence.

    >>> duration(44), duration(170), duration(9000)
    ('40 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{round(seconds, -1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress(
    iterable: Iterable[Any] | None = None, desc: str = "", total: int | None = None, show: bool = True, **kwargs: Any
) -> Any:
    """A tqdm bar; silent with ``show=False`` or the environment variable NEUROENC_PROGRESS=0."""
    with warnings.catch_warnings():
        # A notebook without ipywidgets gets bars of text: nothing to warn of.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm

    hidden = not show or os.environ.get("NEUROENC_PROGRESS", "1") == "0"
    told = _TOLD.get()
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    options: dict[str, Any] = {"desc": desc, "total": total, "disable": hidden, "dynamic_ncols": True, **kwargs}
    if told is None or not total or total < 2:
        return tqdm(iterable, **options)
    bar = _telling_bar(tqdm, told, desc, total)(iterable, **options)
    told.outermost = told.outermost or bar
    return bar


def _telling_bar(tqdm: Any, told: _Told, desc: str, total: int) -> Any:
    """A kind of bar that counts by itself, because one that is not shown does not."""

    class Bar(tqdm):  # type: ignore[misc]
        about, whole, seen, said, iterates, begin = desc, total, 0.0, False, False, time.perf_counter()

        def __iter__(self) -> Iterator[Any]:
            self.iterates = True
            for item in super().__iter__():
                yield item
                self.count(1)

        def update(self, n: float | None = 1) -> Any:
            if not self.iterates:
                self.count(n or 0)
            return super().update(n)

        def count(self, n: float) -> None:
            self.seen += n
            spent, outer = time.perf_counter() - self.begin, told.outermost or self
            if outer.said or spent < _MEASURED or not 0 < self.seen < total or (outer is not self and outer.seen):
                return
            # A loop inside another knows the rate before the other has made its first step.
            expected = spent * total / self.seen * (1 if outer is self else outer.whole)
            outer.said = True
            if expected > _LONG:
                told.say(f"    {outer.about}: about {duration(expected)}")

        def close(self) -> None:
            if told.outermost is self:
                told.outermost = None
            super().close()

    return Bar
