from ._contrast import contrast_studies as contrast_studies
from ._demo import demo as demo
from ._evaluate import evaluate as evaluate
from ._export import export as export
from ._group import group_runs as group_runs
from ._predict import Predictor as Predictor, load_predictor as load_predictor, predict as predict
from ._serve import serve as serve
from .commands import (
    Study as Study,
    caption as caption,
    compare as compare,
    incontext_evaluate as incontext_evaluate,
    incontext_inspect as incontext_inspect,
    incontext_predict as incontext_predict,
    incontext_train as incontext_train,
    plan as plan,
    run as run,
)
from .config import StudyConfig as StudyConfig
from .config.panel import list_panels as list_panels, read_panel as read_panel
from .panels.run import (
    panel_run as panel_run,
    panel_select as panel_select,
    panel_table as panel_table,
)
from .read import example_config as example_config, list_examples as list_examples, read_config as read_config
from .study import Stage as Stage, stage as stage
from .truth import judge_planted as judge_planted
