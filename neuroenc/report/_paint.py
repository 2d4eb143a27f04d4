"""Numbers or category names to colours, and the colour bar or legend that explains them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neuroenc.report._style import INK, category_colours

__all__ = ["Painter"]


class Painter:
    """Numbers or category names to colours, and the matching colour bar or legend."""

    def __init__(
        self,
        data: np.ndarray,
        cmap: str,
        vmin: float | None,
        vmax: float | None,
        colours: Mapping[str, Any] | None = None,
    ) -> None:
        import matplotlib
        from matplotlib.colors import Normalize, to_rgba

        self.categories: list[str] = []
        if data.dtype.kind in "OUS":
            names = [str(x) for x in data]
            self.categories = list(dict.fromkeys(x for x in names if x))
            self.numbers = np.array([self.categories.index(x) if x else np.nan for x in names], float)
            self._palette = np.array(category_colours(len(self.categories)))
            # Given colours are explained where they were chosen: no legend of their own then.
            self._explained = colours is not None
            if colours is not None:
                self._palette = np.array([to_rgba(colours[x]) for x in self.categories]).reshape(-1, 4)
            return
        self.numbers = data.astype(float)
        finite = self.numbers[np.isfinite(self.numbers)]
        top = float(finite.max()) if finite.size else 1.0
        low = float(finite.min()) if finite.size else 0.0
        self._vmax = top if vmax is None else float(vmax)
        self._vmin = (0.0 if self._vmax > 0 else low) if vmin is None else float(vmin)
        if not self._vmin < self._vmax:
            self._vmin, self._vmax = self._vmin - 0.5, self._vmin + 0.5
        self._extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[
            (int(low < self._vmin - 1e-9), int(top > self._vmax + 1e-9))
        ]
        self._cmap = matplotlib.colormaps[cmap]
        self._norm = Normalize(self._vmin, self._vmax, clip=True)

    @property
    def room(self) -> float:
        """Inches that the colour bar or legend needs."""
        return 0.08 if self.categories and self._explained else 0.62

    def colours(self, numbers: np.ndarray) -> np.ndarray:
        drawn = np.isfinite(numbers)
        rgba = np.zeros((*numbers.shape, 4))
        if self.categories:
            rgba[drawn] = self._palette[numbers[drawn].astype(int)]
        else:
            rgba[drawn] = self._cmap(self._norm(numbers[drawn]))
        return rgba

    def corner(self, numbers: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """Category of a triangle: its first labelled corner (names have no mean)."""
        corners = numbers[faces]
        first = np.argmax(np.isfinite(corners), axis=1)
        return corners[np.arange(len(faces)), first]

    def key(self, figure: Any, label: str, *, height: float, bottom: float) -> None:
        """Colour bar, or a legend for categories, below the panels."""
        if self.categories:
            if self._explained:
                return
            from matplotlib.patches import Patch

            patches = [Patch(color=tuple(self._palette[k]), label=name) for k, name in enumerate(self.categories)]
            figure.legend(
                handles=patches,
                loc="lower center",
                ncols=min(len(patches), 14),
                frameon=False,
                fontsize=9,
                handlelength=0.9,
                handleheight=0.9,
                columnspacing=1.3,
                handletextpad=0.5,
                labelcolor=INK,
            )
            return
        from matplotlib.cm import ScalarMappable

        axes = figure.add_axes((0.36, bottom, 0.28, height))
        bar = figure.colorbar(
            ScalarMappable(self._norm, self._cmap),
            cax=axes,
            orientation="horizontal",
            extend=self._extend,
            extendfrac=0.03,
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=2, labelsize=8, pad=2)
        edge = -0.05 if self._extend in ("min", "both") else -0.02  # clear of the arrow
        axes.text(edge, 0.5, label, transform=axes.transAxes, ha="right", va="center", fontsize=9, color=INK)
