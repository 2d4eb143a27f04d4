from ._encoders import merge_cores as merge_cores, merge_incontext as merge_incontext
from ._merge import (
    MERGES as MERGES,
    Merged as Merged,
    learn_merge as learn_merge,
    merge_models as merge_models,
    soup as soup,
)
