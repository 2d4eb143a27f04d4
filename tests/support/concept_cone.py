"""Voxels planted on real CLIP text vectors: images are simulated around concepts, and weights are fitted to them.

The concepts are real; the images are not. An image is its concept's unit vector, moved across a modality gap (one
random direction of length 0.8, as measured for CLIP) and scattered by half of the covariance of the concepts
themselves. It is the geometry of a text tower with a gap, no image tower's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from neuroenc import data
from neuroenc.captions import project_weights
from neuroenc.encoders import RidgeEncoder

GAP, SCATTER, EACH = 0.8, 0.5, 5
TEMPERATURES = (1 / 15, 1 / 50, 1 / 150, 1 / 500, 1 / 1500)


def unit(x):
    """Rows of unit length."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cone(vectors):
    """Mean cosine of two different rows, and the participation ratio of the covariance of the unit rows."""
    rows = unit(np.asarray(vectors, dtype=np.float64))
    n = len(rows)
    values = np.linalg.eigvalsh(np.cov(rows.T))
    mean = (np.square(rows.sum(axis=0)).sum() - n) / (n * (n - 1))
    return {"mean cosine": float(mean), "effective rank": float(values.sum() ** 2 / np.square(values).sum())}


@dataclass
class ConceptCone:
    """Concepts (1607, 512), voxels planted on ``pairs`` (voxel, 2) of them, and a bank that shows none of these."""

    names: np.ndarray
    pairs: np.ndarray
    wanted: np.ndarray
    bank: np.ndarray
    pool: np.ndarray
    responses: np.ndarray

    def weights(self, n, seed=0):
        """Ridge weights (feature, voxel) of ``n`` images of any concept; of None the planted names, cone and all."""
        if n is None:
            return self.names[self.pairs].mean(axis=1).T
        at = np.random.default_rng(seed).choice(len(self.pool), n, replace=False)
        return np.asarray(RidgeEncoder().fit(unit(self.pool[at]), self.responses[at]).to_linear()[0])

    def measure(self, coef, mean_out=False, method="softmax", **settings):
        """One row a voxel: rank of the planted name, cosine to the planted direction, images, distance, norm.

        ``mean_out`` takes the bank's mean direction out of the weights first. Directions are compared around the means
        of images and of names, which differ by the gap; the rank is of the better-placed of two planted names.
        """
        mean = unit(self.bank).mean(axis=0)
        if mean_out:
            coef = coef - np.outer(unit(mean), unit(mean) @ coef)
        found = project_weights(coef, self.bank, method, progress=False, **settings)
        embedding = found["embedding"].values.astype(np.float64)
        # Weights are differences of responses already.
        direction = unit(embedding if method == "none" else unit(embedding) - mean)
        score = direction @ unit(self.names - self.names.mean(axis=0)).T
        own = np.take_along_axis(score, self.pairs, axis=1).max(axis=1)
        return pd.DataFrame(
            {
                "rank": 1 + (score > own[:, None]).sum(axis=1),
                "cosine": np.einsum("vd,vd->v", direction, unit(self.wanted)),
                "images": found["effective_images"].values,
                "distance": found["distance"].values / float(found["natural_distance"]),
                "norm": np.linalg.norm(embedding, axis=1) / np.linalg.norm(self.bank, axis=1).mean(),
            }
        )


def concept_cone(mirror, seed=0, single=100, mixed=100, noise=1.7):
    """Real concepts, simulated images; half of the voxels like one concept, half two.

    Responses are the cosine of image and planted direction, and noise of ``noise`` standard deviations of it: at 1.7 a
    perfect encoder reaches r = .51.
    """
    vectors = data.load_dataset("clip-text-concepts", mirror=mirror).extra["vectors"].values.astype(np.float64)
    rng = np.random.default_rng(seed)
    size, names = np.linalg.norm(vectors, axis=1), unit(vectors)
    # Names that two sources share, and their near synonyms, are one concept for a rank: the first of each counts.
    alike = np.triu(names @ names.T > 0.97, 1).any(axis=0)
    names, size = names[~alike], size[~alike]
    count, width = names.shape
    gap = GAP * unit(rng.standard_normal(width))
    spread = np.linalg.cholesky(np.cov(names.T) + 1e-9 * np.eye(width)) * SCATTER**0.5

    def draw(each):
        scatter = rng.standard_normal((count * each, width)) @ spread.T
        around = unit(np.repeat(names, each, axis=0) + gap + scatter)
        return around * (np.repeat(size, each) * rng.uniform(0.9, 1.1, count * each))[:, None]

    liked = rng.choice(count, single + 2 * mixed, replace=False)
    pairs = np.concatenate([np.repeat(liked[:single, None], 2, axis=1), liked[single:].reshape(mixed, 2)])
    # Around the mean of the names: what a response can tell. The cone's own direction is the same for every image.
    wanted = unit((names - names.mean(axis=0))[pairs].mean(axis=1))
    kept = np.repeat(~np.isin(np.arange(count), liked), EACH)
    bank, pool = draw(EACH)[kept], draw(EACH)
    clean = unit(pool) @ wanted.T
    responses = clean / clean.std(axis=0)
    responses = responses + noise * rng.standard_normal(responses.shape)
    return ConceptCone(names, pairs, wanted, bank, pool, responses)


def geometry(mirror, seed=0, sizes=(None, 200, 1000, 5000)):
    """Medians over voxels of one and of two concepts, a row for each number of stimuli and projection."""
    made, rows = concept_cone(mirror, seed), []
    ways = {f"1/{round(1 / t)}": {"temperature": t} for t in TEMPERATURES}
    ways |= {f"{name}, weights centred": {**how, "mean_out": True} for name, how in ways.items()}
    ways |= {
        "1/150, raw vectors averaged": {"decouple": False},
        "1/150, not renormalised": {"renormalise": False},
        "nearest": {"method": "nearest"},
        "none": {"method": "none"},
    }
    for n in sizes:
        coef = made.weights(n, seed)
        for name, how in ways.items():
            table = made.measure(coef, **how)
            likes = np.where(made.pairs[:, 0] == made.pairs[:, 1], "one", "two")
            found = table.groupby(likes).median()
            found["first ten"] = (table["rank"] <= 10).groupby(likes).mean()
            rows += [{"stimuli": n or "planted", "projection": name, "likes": k, **v} for k, v in found.iterrows()]
    return pd.DataFrame(rows)
