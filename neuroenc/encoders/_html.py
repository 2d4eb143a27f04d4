"""What a fitted encoder shows in a notebook."""

from __future__ import annotations

import html
import json
from typing import Any

import numpy as np

__all__ = ["summary_html"]


def _histogram(values: np.ndarray, width: int = 180, height: int = 36) -> str:
    counts, edges = np.histogram(np.log10(values), bins=min(21, max(2, len(np.unique(values)))))
    step = width / len(counts)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - height * c / counts.max():.1f}" width="{max(step - 1, 1):.1f}" '
        f'height="{height * c / counts.max():.1f}" fill="#33658a"/>'
        for i, c in enumerate(counts)
    )
    label = f"10^{edges[0]:.1f} to 10^{edges[-1]:.1f}"
    return f'<svg width="{width}" height="{height}" role="img" aria-label="alpha histogram">{bars}</svg> {label}'


def summary_html(encoder: Any) -> str:
    """Shape, penalties, cross-validated score and data hash of a fitted encoder, as an HTML table."""
    p, v = encoder.coef_.shape
    rows = {"features × voxels": f"{p:,} × {v:,}", "fitted on": f"{encoder.n_samples_fit_:,} samples"}
    alpha = getattr(encoder, "alpha_", None)
    if alpha is not None and np.size(alpha):
        finite = np.asarray(alpha, dtype=float).ravel()
        finite = finite[np.isfinite(finite) & (finite > 0)]
        if len(finite):
            rows["alpha per voxel"] = _histogram(finite)
    best = getattr(encoder, "best_score_", None)
    if best is not None:
        rows[f"cross-validated {html.escape(str(encoder.scoring))}, median"] = f"{np.nanmedian(best):.3f}"
    rows["features hash"] = html.escape(encoder._features_hash_[:12] or "unlabelled")
    rows["version"] = html.escape(json.loads(encoder.provenance_)["versions"]["neuroenc"])
    body = "".join(f"<tr><th style='text-align:left'>{k}</th><td>{x}</td></tr>" for k, x in rows.items())
    return f"<table>{body}</table>"
