from ._bootstrap import (
    bootstrap as bootstrap,
    bootstrap_difference as bootstrap_difference,
    bootstrap_rois as bootstrap_rois,
)
from ._ceiling_bootstrap import bootstrap_ceiling as bootstrap_ceiling, bootstrap_normalised as bootstrap_normalised
from ._ceilings import (
    ceiling_from_repeats as ceiling_from_repeats,
    ncsnr as ncsnr,
    noise_ceiling as noise_ceiling,
    split_half_reliability as split_half_reliability,
)
from ._fdr import fdr as fdr
from ._intervals import (
    crossed_interval as crossed_interval,
    median_samples as median_samples,
    sample_interval as sample_interval,
)
from ._normalise import convert_ceiling as convert_ceiling, normalise as normalise
from ._paired import (
    PairedResult as PairedResult,
    SignFlipResult as SignFlipResult,
    paired_permutation_test as paired_permutation_test,
    sign_flip_test as sign_flip_test,
)
from ._partition import Partition as Partition, partition_variance as partition_variance, subsets as subsets
from ._permutation import PermutationResult as PermutationResult, permutation_test as permutation_test
from ._rdm import rdm as rdm, square_rdm as square_rdm
from ._repeats import variance_components as variance_components
from ._resampling import BootstrapResult as BootstrapResult
from ._rsa import (
    RSACeiling as RSACeiling,
    RSATest as RSATest,
    bootstrap_rdms as bootstrap_rdms,
    compare_rdms as compare_rdms,
    rdm_ceiling as rdm_ceiling,
    rdm_permutation_test as rdm_permutation_test,
)
from ._samples import bootstrap_samples as bootstrap_samples, difference_p as difference_p, units_seen as units_seen
from ._scores import (
    explained_variance as explained_variance,
    pearson_r as pearson_r,
    r2_score as r2_score,
    score as score,
)
from ._subject_ceiling import SubjectCeiling as SubjectCeiling, subject_ceiling as subject_ceiling
from ._subjects import SubjectBootstrap as SubjectBootstrap, bootstrap_subjects as bootstrap_subjects
