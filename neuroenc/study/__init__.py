"""Whole analyses: one study, its settings, its stages, and the commands that are lists of them."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
