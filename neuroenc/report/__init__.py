"""Pages of results in sections and tabs, their tables and figures, and files for other programs.

``study_page`` makes one page, with a tab for each part of a study: accuracy, comparison, captions, few trials. A `Page`
takes a `Section` from any function of labelled tables (``accuracy_sections``, ``comparison_sections``,
``explorer_sections``, ``support_sections``, or one of your own). ``write_report`` and ``write_caption_report`` write
pages of one part. ``roi_summary``, ``plot_accuracy``, ``plot_surface``, ``plot_mosaic``, ``plot_support_curves`` and
others are pieces, for notebooks; ``export_bids`` writes a BIDS derivative. Importing this room loads no plotting
library.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
