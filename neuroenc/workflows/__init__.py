"""Whole analyses: from data to a report, resumable, from a config or in one call.

Examples
--------
>>> from neuroenc.workflows import list_examples
>>> list_examples()
['haxby', 'haxby-slice', 'nsd', 'v4']
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
