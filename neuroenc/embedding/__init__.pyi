from ._augment import embed_augmented as embed_augmented
from ._basis import BasisTransform as BasisTransform
from ._cache import cache_clear as cache_clear, cache_dir as cache_dir, cache_list as cache_list
from ._caption_grid import caption_grid as caption_grid
from ._embedders import ImageEmbedder as ImageEmbedder, TextEmbedder as TextEmbedder
from ._losses import (
    distill_kl as distill_kl,
    info_nce as info_nce,
    nested_loss as nested_loss,
    perturbation_contrast as perturbation_contrast,
    ranking_hinge as ranking_hinge,
    ranking_loss as ranking_loss,
)
from ._packages import prepare as prepare
from ._quantise import quantise_weights as quantise_weights
from ._registry import (
    Backbone as Backbone,
    image_backbone as image_backbone,
    list_backbones as list_backbones,
    register_backbone as register_backbone,
)
from ._units import CoreUnits as CoreUnits, unit_use as unit_use
from ._windows import embed_windows as embed_windows
from .spaces._train import space_settings as space_settings, train_space as train_space
