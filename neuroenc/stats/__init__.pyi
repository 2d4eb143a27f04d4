from ._ceilings import (
    SubjectCeiling as SubjectCeiling,
    ceiling_error as ceiling_error,
    ncsnr as ncsnr,
    noise_ceiling as noise_ceiling,
    split_half_reliability as split_half_reliability,
    subject_ceiling as subject_ceiling,
)
from ._group import group_map as group_map, prevalence as prevalence
from ._identification import matching_test as matching_test, n_way_accuracy as n_way_accuracy
from ._intervals import (
    BootstrapResult as BootstrapResult,
    crossed_interval as crossed_interval,
    median_samples as median_samples,
    sample_interval as sample_interval,
    share_interval as share_interval,
)
from ._learning import PowerLaw as PowerLaw, fit_power_law as fit_power_law
from ._panel import SelectedPanel as SelectedPanel, borda as borda, select_panel as select_panel
from ._partition import Partition as Partition, partition_variance as partition_variance, subsets as subsets
from ._permutation import (
    PermutationResult as PermutationResult,
    fdr as fdr,
    permutation_test as permutation_test,
    sign_flip_test as sign_flip_test,
)
from ._rdm import rdm as rdm, square_rdm as square_rdm
from ._resampler import Resampler as Resampler
from ._rsa import compare_rdms as compare_rdms, rdm_ceiling as rdm_ceiling
from ._scores import (
    convert_ceiling as convert_ceiling,
    explained_variance as explained_variance,
    normalise as normalise,
    pearson_r as pearson_r,
    r2_score as r2_score,
    score as score,
)
from ._spatial import MapComparison as MapComparison, compare_maps as compare_maps, spatial_null as spatial_null
from ._tfce import mesh_edges as mesh_edges, tfce as tfce
