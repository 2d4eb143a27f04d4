from ._bids import export_bids as export_bids
from ._brain_html import surface_html as surface_html
from ._caption_report import write_caption_report as write_caption_report
from ._comparison import write_comparison_report as write_comparison_report
from ._figures import plot_accuracy as plot_accuracy
from ._icl_figures import (
    plot_support_curves as plot_support_curves,
    plot_top_support as plot_top_support,
    plot_weight_colours as plot_weight_colours,
)
from ._icl_matrices import plot_confusion as plot_confusion, plot_heads as plot_heads
from ._mosaic import plot_mosaic as plot_mosaic
from ._report import write_report as write_report
from ._support import plot_training_curves as plot_training_curves, write_support_report as write_support_report
from ._surface import plot_surface as plot_surface
from ._tables import frequent_words as frequent_words, roi_summary as roi_summary
