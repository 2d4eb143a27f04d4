"""A simulated world of rendered scenes and a simulated visual cortex that sees it, with the planted truth.

Examples
--------
>>> world = simulate_world(20, seed=0)
>>> subject = simulate_cortex(world, n_voxels={"V1": 8, "PPA": 8}, n_sessions=2)[0]
>>> sorted(set(subject.responses.roi.values.tolist()))
['PPA', 'V1']
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
