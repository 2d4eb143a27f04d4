"""Statistics of encoding models: scores, ceilings, tests, bootstrap, variance partitioning, RSA.

Pure functions on arrays ``(n_samples, n_voxels)``; numpy and scipy only. Labelled arrays (xarray, pandas) are matched
by label. Sums run in float64 in blocks of voxels under ``max_memory`` bytes, and results do not depend on the blocks.

Everything random takes ``seed``; what is long takes ``n_jobs`` (threads) and ``progress`` (True, or a callable
that is told how many of how many are done).

Units are kept apart: ``"r"`` is a correlation, ``"r2"`` and ``"ev"`` are shares of variance. A ceiling is
asked for in one of them, and a score is only ever divided by a ceiling in its own unit.

Missing values: a NaN in the measured or predicted responses drops that sample for that voxel. A voxel
without a defined score is NaN, and NaN voxels are left out of corrections and summaries.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
