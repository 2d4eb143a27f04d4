"""Tables, figures, maps and the self-contained HTML report of an encoding analysis.

``write_report`` writes everything of one encoder, ``write_caption_report`` shows the captions of its voxels,
``write_comparison_report`` compares several encoders, ``write_support_report`` shows accuracy over the size of a
support; ``surface_html`` writes a cortex to turn and flatten in a browser, ``export_bids`` a BIDS derivative;
``roi_summary``, ``plot_accuracy``, ``plot_surface``, ``plot_mosaic``, ``plot_support_curves`` and others are pieces,
for notebooks. Importing this room loads no plotting library.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
