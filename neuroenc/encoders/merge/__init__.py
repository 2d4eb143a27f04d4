"""Merging of networks that were fine-tuned from one start: task vectors, soups, and coefficients from few trials.

Examples
--------
>>> import copy, torch
>>> from neuroenc.encoders.merge import merge_models
>>> base = torch.nn.Linear(2, 1)
>>> tuned = copy.deepcopy(base)
>>> _ = torch.nn.init.constant_(tuned.bias, base.bias.item() + 1.0)
>>> merged = merge_models(base, {"one": tuned}, {"one": 0.5})
>>> round((merged.bias - base.bias).item(), 3)
0.5
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
