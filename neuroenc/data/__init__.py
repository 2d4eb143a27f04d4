"""Responses and stimuli: the schema, files, preprocessing, splits, volumes, data sets and simulation.

Examples
--------
>>> import neuroenc.data as data
>>> r = data.make_responses([[1.0], [3.0]], stimulus=["a", "b"], session=1)
>>> data.zscore(r, by="session").values.ravel().tolist()
[-1.0, 1.0]
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
