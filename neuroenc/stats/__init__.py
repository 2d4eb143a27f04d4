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

from neuroenc.stats._bootstrap import bootstrap, bootstrap_difference, bootstrap_rois
from neuroenc.stats._ceiling_bootstrap import bootstrap_ceiling, bootstrap_normalised
from neuroenc.stats._ceilings import (
    ceiling_from_repeats,
    ncsnr,
    noise_ceiling,
    split_half_reliability,
)
from neuroenc.stats._fdr import fdr
from neuroenc.stats._intervals import crossed_interval, median_samples, sample_interval
from neuroenc.stats._normalise import convert_ceiling, normalise
from neuroenc.stats._paired import (
    PairedResult,
    SignFlipResult,
    paired_permutation_test,
    sign_flip_test,
)
from neuroenc.stats._partition import Partition, partition_variance
from neuroenc.stats._permutation import PermutationResult, permutation_test
from neuroenc.stats._rdm import rdm, square_rdm
from neuroenc.stats._repeats import variance_components
from neuroenc.stats._resampling import BootstrapResult
from neuroenc.stats._rsa import (
    RSACeiling,
    RSATest,
    bootstrap_rdms,
    compare_rdms,
    rdm_ceiling,
    rdm_permutation_test,
)
from neuroenc.stats._samples import bootstrap_samples, difference_p, units_seen
from neuroenc.stats._scores import explained_variance, pearson_r, r2_score, score
from neuroenc.stats._subject_ceiling import SubjectCeiling, subject_ceiling
from neuroenc.stats._subjects import SubjectBootstrap, bootstrap_subjects

__all__ = [
    "BootstrapResult",
    "PairedResult",
    "Partition",
    "PermutationResult",
    "RSACeiling",
    "RSATest",
    "SignFlipResult",
    "SubjectBootstrap",
    "SubjectCeiling",
    "bootstrap",
    "bootstrap_ceiling",
    "bootstrap_difference",
    "bootstrap_normalised",
    "bootstrap_rdms",
    "bootstrap_rois",
    "bootstrap_samples",
    "bootstrap_subjects",
    "ceiling_from_repeats",
    "compare_rdms",
    "convert_ceiling",
    "crossed_interval",
    "difference_p",
    "explained_variance",
    "fdr",
    "median_samples",
    "ncsnr",
    "noise_ceiling",
    "normalise",
    "paired_permutation_test",
    "partition_variance",
    "pearson_r",
    "permutation_test",
    "r2_score",
    "rdm",
    "rdm_ceiling",
    "rdm_permutation_test",
    "sample_interval",
    "score",
    "sign_flip_test",
    "split_half_reliability",
    "square_rdm",
    "subject_ceiling",
    "units_seen",
    "variance_components",
]
