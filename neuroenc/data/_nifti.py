"""Volumes and surfaces: masks and ROI images in, maps with the right affine out."""

from __future__ import annotations

from neuroenc.data._images import check_affine, region_mask
from neuroenc.data._maps import to_gifti, unmask
from neuroenc.data._masked import Masked, label_rois, load_masked

__all__ = ["Masked", "check_affine", "label_rois", "load_masked", "region_mask", "to_gifti", "unmask"]
