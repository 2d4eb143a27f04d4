from . import simulate as simulate
from ._align import align as align, in_roi as in_roi, match as match, roi_names as roi_names
from ._atlas import (
    add_atlas as add_atlas,
    atlas_regions as atlas_regions,
    atlas_table as atlas_table,
    list_atlases as list_atlases,
    load_atlas as load_atlas,
)
from ._build import check_place as check_place, make_features as make_features, make_responses as make_responses
from ._cifti import read_cifti as read_cifti, to_cifti as to_cifti
from ._files import (
    Manifest as Manifest,
    ManifestFile as ManifestFile,
    data_dir as data_dir,
    fetch as fetch,
    list_manifests as list_manifests,
    load_manifest as load_manifest,
    presence as presence,
    verify as verify,
)
from ._generalise import (
    feature_clusters as feature_clusters,
    matched_test as matched_test,
    near_duplicates as near_duplicates,
    nearest_stimuli as nearest_stimuli,
    read_split as read_split,
    small_pictures as small_pictures,
)
from ._images import (
    check_affine as check_affine,
    image_values as image_values,
    open_image as open_image,
    region_mask as region_mask,
)
from ._io import load as load, save as save
from ._meshes import (
    load_anatomy as load_anatomy,
    load_mesh as load_mesh,
    mesh_files as mesh_files,
    stack_subjects as stack_subjects,
)
from ._nilearn import (
    from_masker as from_masker,
    from_surface_image as from_surface_image,
    to_surface_image as to_surface_image,
)
from ._pictures import (
    READER as READER,
    find_pictures as find_pictures,
    list_pictures as list_pictures,
    picture_endings as picture_endings,
    read_picture as read_picture,
)
from ._preprocess import average_repeats as average_repeats, group_ids as group_ids, zscore as zscore
from ._rendered_text import (
    PERTURBATIONS as PERTURBATIONS,
    perturb_text as perturb_text,
    render_text as render_text,
)
from ._series import (
    clean_timeseries as clean_timeseries,
    is_series as is_series,
    make_timeseries as make_timeseries,
    resample_to_volumes as resample_to_volumes,
    series_tr as series_tr,
    volume_numbers as volume_numbers,
)
from ._splits import (
    check_disjoint as check_disjoint,
    check_unseen as check_unseen,
    folds as folds,
    shared_test as shared_test,
    split_by as split_by,
    split_by_stimulus as split_by_stimulus,
)
from ._stimuli import EncodingData as EncodingData, PixelBank as PixelBank, Stimuli as Stimuli
from ._surfaces import read_surface as read_surface, to_gifti as to_gifti
from ._validate import (
    validate as validate,
    validate_features as validate_features,
    validate_responses as validate_responses,
)
from ._volumes import Masked as Masked, label_rois as label_rois, load_masked as load_masked, unmask as unmask
from .datasets._bids import read_bids as read_bids
from .datasets._brainscore import (
    is_assembly as is_assembly,
    read_assembly as read_assembly,
    write_assembly as write_assembly,
)
from .datasets._glmsingle import read_glmsingle as read_glmsingle
from .datasets._nsd._design import NSDSplit as NSDSplit, nsd_split as nsd_split
from .datasets._nsd._load import nsd as nsd
from .datasets._nsd._rois import nsd_mask as nsd_mask
from .datasets._nsd._transform import nsd_to_surface as nsd_to_surface
from .datasets._recording import Recording as Recording
from .datasets._registry import (
    SESSIONS as SESSIONS,
    Dataset as Dataset,
    Found as Found,
    Source as Source,
    describe as describe,
    known_layouts as known_layouts,
    load_dataset as load_dataset,
    loader_options as loader_options,
)
from .datasets._v4 import v4_sessions as v4_sessions
from .simulate import simulate_cortex as simulate_cortex, simulate_world as simulate_world
