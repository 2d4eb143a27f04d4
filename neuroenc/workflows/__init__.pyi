from ._bank import build_bank as build_bank
from ._caption import caption as caption
from ._caption_config import (
    CaptionConfig as CaptionConfig,
    example_caption_config as example_caption_config,
    list_caption_examples as list_caption_examples,
    read_caption_config as read_caption_config,
)
from ._caption_truth import judge_planted as judge_planted
from ._captioner import Captioner as Captioner
from ._compare import run_comparison as run_comparison
from ._compare_config import (
    CompareConfig as CompareConfig,
    example_compare_config as example_compare_config,
    list_compare_examples as list_compare_examples,
    read_compare_config as read_compare_config,
)
from ._config import (
    RunConfig as RunConfig,
    example_config as example_config,
    list_examples as list_examples,
    read_config as read_config,
)
from ._demo import demo as demo
from ._export import export as export
from ._icl import (
    icl_extend as icl_extend,
    icl_finetune as icl_finetune,
    icl_predict as icl_predict,
    icl_pretrain as icl_pretrain,
)
from ._icl_config import (
    IclConfig as IclConfig,
    example_icl_config as example_icl_config,
    list_icl_examples as list_icl_examples,
    read_icl_config as read_icl_config,
)
from ._icl_evaluate import icl_evaluate as icl_evaluate
from ._run import run as run
