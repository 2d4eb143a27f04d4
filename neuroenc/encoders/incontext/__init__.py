"""In-context encoders: a transformer that turns a few (stimulus, response) pairs of a voxel into its encoder.

Baselines, priors over weights and support curves stand beside it, and need no torch.

Examples
--------
>>> from neuroenc.encoders.incontext import PRESETS
>>> PRESETS["clip"].n_features, PRESETS["clip"].depth
(512, 20)
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
