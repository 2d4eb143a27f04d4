from ._page import Block as Block, Page as Page, Section as Section
from ._print import print_report as print_report
from ._regions import frequent_words as frequent_words, roi_summary as roi_summary
from ._reports import (
    study_page as study_page,
    write_caption_report as write_caption_report,
    write_report as write_report,
)
from ._style import figure_pdf as figure_pdf, figure_svg as figure_svg
from .brain._slices import plot_mosaic as plot_mosaic
from .brain._surface import plot_surface as plot_surface
from .explorer._figure import plot_region as plot_region, write_region_figure as write_region_figure
from .explorer._sections import explorer_sections as explorer_sections
from .export._bids import export_bids as export_bids
from .export._pycortex import export_pycortex as export_pycortex
from .sections._accuracy import accuracy_sections as accuracy_sections, plot_accuracy as plot_accuracy
from .sections._comparison import comparison_sections as comparison_sections
from .sections._decoding import plot_identification as plot_identification
from .sections._depth import plot_depth_curves as plot_depth_curves, plot_layer_dims as plot_layer_dims
from .sections._group import group_sections as group_sections
from .sections._incontext import (
    plot_confusion as plot_confusion,
    plot_heads as plot_heads,
    plot_top_support as plot_top_support,
    plot_weight_colours as plot_weight_colours,
)
from .sections._panel import panel_sections as panel_sections
from .sections._planning import (
    contact_sheet as contact_sheet,
    planning_sections as planning_sections,
    plot_expected_accuracy as plot_expected_accuracy,
)
from .sections._prediction import (
    prediction_section as prediction_section,
    prediction_view as prediction_view,
    region_responses as region_responses,
)
from .sections._support import (
    plot_support_curves as plot_support_curves,
    plot_training_curves as plot_training_curves,
    support_sections as support_sections,
)
