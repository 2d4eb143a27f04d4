"""What was found at a path: a known layout, what it holds, and the call that loads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Found"]


@dataclass(frozen=True)
class Found:
    """A data set recognised by its layout.

    ``kind`` is its name (as in ``neuroenc data list``, or "glmsingle", "bids", ...), ``has`` what is there,
    ``missing`` what a complete one would have, ``call`` the Python that loads it.
    """

    kind: str
    title: str
    root: Path
    has: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    call: str = ""

    def __str__(self) -> str:
        lines = [f"{self.title} in {self.root}"]
        lines += [f"  {k:<12} {v}" for k, v in self.has.items()]
        lines += [f"  {'missing':<12} {x}" for x in self.missing]
        if self.call:
            lines += [f"  {'load with':<12} {self.call}"]
        return "\n".join(lines)
