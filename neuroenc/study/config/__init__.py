"""Settings of a study: one TOML file, one pydantic model for each of its tables.

Legal values are in the types, so that ``neuroenc config schema``, the reference page and the checks agree.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
