"""Tables, figures, maps and the self-contained HTML report of an encoding analysis.

``write_report`` writes everything of one encoder, ``write_caption_report`` shows the captions of its voxels,
``write_comparison_report`` compares several encoders, ``write_support_report`` shows accuracy over the size of a
support; ``surface_html`` writes a cortex to turn and flatten in a browser, ``export_bids`` a BIDS derivative;
``roi_summary``, ``plot_accuracy``, ``plot_surface``, ``plot_mosaic``, ``plot_support_curves`` and others are pieces,
for notebooks. Importing this room loads no plotting library.
"""

from __future__ import annotations

from neuroenc.report._bids import export_bids
from neuroenc.report._brain_html import surface_html
from neuroenc.report._caption_report import write_caption_report
from neuroenc.report._comparison import write_comparison_report
from neuroenc.report._figures import plot_accuracy
from neuroenc.report._icl_figures import plot_support_curves, plot_top_support, plot_weight_colours
from neuroenc.report._icl_matrices import plot_confusion, plot_heads
from neuroenc.report._mosaic import plot_mosaic
from neuroenc.report._report import write_report
from neuroenc.report._support import plot_training_curves, write_support_report
from neuroenc.report._surface import plot_surface
from neuroenc.report._tables import frequent_words, roi_summary

__all__ = [
    "export_bids",
    "frequent_words",
    "plot_accuracy",
    "plot_confusion",
    "plot_heads",
    "plot_mosaic",
    "plot_support_curves",
    "plot_surface",
    "plot_top_support",
    "plot_training_curves",
    "plot_weight_colours",
    "roi_summary",
    "surface_html",
    "write_caption_report",
    "write_comparison_report",
    "write_report",
    "write_support_report",
]
