"""Progress bars for notebooks and terminals."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any

__all__ = ["progress"]


def progress(
    iterable: Iterable[Any] | None = None, desc: str = "", total: int | None = None, show: bool = True, **kwargs: Any
) -> Any:
    """A tqdm bar; silent with ``show=False`` or the environment variable NEUROENC_PROGRESS=0."""
    with warnings.catch_warnings():
        # A notebook without ipywidgets gets bars of text: nothing to warn of.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm

    hidden = not show or os.environ.get("NEUROENC_PROGRESS", "1") == "0"
    return tqdm(iterable, desc=desc, total=total, disable=hidden, dynamic_ncols=True, **kwargs)
