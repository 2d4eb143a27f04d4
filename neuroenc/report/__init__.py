"""Tables, figures, maps and the self-contained HTML report of an encoding analysis.

``write_report`` writes everything of one encoder, ``write_comparison_report`` compares several;
``roi_summary``, ``plot_accuracy``, ``plot_surface`` and ``plot_mosaic`` are pieces, for notebooks. Importing this
room loads no plotting library.
"""

from __future__ import annotations

from neuroenc.report._comparison import write_comparison_report
from neuroenc.report._figures import plot_accuracy
from neuroenc.report._mosaic import plot_mosaic
from neuroenc.report._report import write_report
from neuroenc.report._surface import plot_surface
from neuroenc.report._tables import frequent_words, roi_summary

__all__ = [
    "frequent_words",
    "plot_accuracy",
    "plot_mosaic",
    "plot_surface",
    "roi_summary",
    "write_comparison_report",
    "write_report",
]
