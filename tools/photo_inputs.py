"""Image vectors of the ConSE space that a photograph with some caption might have, made from texts alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import ConfigError, DataError

__all__ = ["conse_classes", "leave_one_out", "text_to_conse"]


def conse_classes(device: str = "cpu") -> np.ndarray:
    """MiniLM vectors of the 1000 ImageNet class names, float64 (1000, 384), not centred."""
    from neuroenc._core.device import exact_arithmetic
    from neuroenc.embedding._offline import _class_vectors

    with exact_arithmetic():
        return np.asarray(_class_vectors(device).cpu().numpy(), dtype=np.float64)


def text_to_conse(
    texts: Any,
    classes: Any,
    *,
    temperature: float = 0.15,
    noise: float = 0.04,
    top: int = 10,
    seed: int = 0,
    chunk: int = 4096,
) -> np.ndarray:
    r"""What the image side of ConSE could say of a photograph with these texts: a mixture of class names.

    .. math:: l_c = \cos(t + m, e_c) + \eta\,\epsilon_c, \quad p = \mathrm{softmax}(l / \tau), \quad
        z = \sum_{k \le 10} p_{c_k} (e_{c_k} - m) \Big/ \sum_{k \le 10} p_{c_k}

    with e_c the vectors of class names, m their mean, and c_1, ..., c_10 the classes of largest l. An image vector of
    ConSE lies in the convex hull of class names by construction; a text does not, and a captioner of texts with noise
    around them never meets what it will be given.

    Parameters
    ----------
    texts : array (n, d)
        Text side of ConSE (centred).
    classes : array (c, d)
        Vectors of the class names, not centred.
    temperature : float
        tau. At 0.15 the norms of z have the median 0.52, between those of photographs that are not of COCO (0.49 and
        0.57): as many classes share an image as there.
    noise : float
        eta. At 0.04 a quarter of the texts change their first class, which is the published error of EfficientNet-
        Lite0 on ImageNet.
    top : int
        Classes of a vector.
    seed : int
    chunk : int
        Texts at a time; results do not depend on it.

    Returns
    -------
    ndarray (n, d) float32

    Raises
    ------
    ConfigError
        Illegal settings.
    DataError
        Widths differ.

    References
    ----------
    Norouzi et al. Zero-shot learning by convex combination of semantic embeddings. ICLR 2014.

    Examples
    --------
    >>> classes = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> near = classes[:1] - classes.mean(axis=0)
    >>> z = text_to_conse(near, classes, temperature=0.01, noise=0, top=1)
    >>> bool(np.allclose(z, near))
    True
    """
    x, names = np.asarray(texts, dtype=np.float64), np.asarray(classes, dtype=np.float64)
    if x.ndim != 2 or names.ndim != 2 or x.shape[1] != names.shape[1]:
        raise DataError(f"texts {x.shape} and classes {names.shape} do not share one width; legal is (n, d), (c, d).")
    if not temperature > 0 or noise < 0 or not 1 <= top <= len(names) or chunk < 1:
        raise ConfigError(
            f"temperature={temperature!r} must be positive, noise={noise!r} at least 0, top={top!r} 1 to {len(names)}, "
            f"chunk={chunk!r} at least 1."
        )
    mean, directions = names.mean(axis=0), unit_rows(names)
    centred = names - mean
    out = np.empty(x.shape, dtype=np.float32)
    rng = np.random.default_rng(seed)
    for start in range(0, len(x), chunk):
        part = slice(start, start + chunk)
        logits = unit_rows(x[part] + mean) @ directions.T
        if noise:
            logits += noise * rng.standard_normal(logits.shape)
        best = np.argpartition(-logits, top - 1, axis=1)[:, :top]
        chosen = np.take_along_axis(logits, best, axis=1) / temperature
        share = np.exp(chosen - chosen.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        out[part] = np.einsum("nk,nkd->nd", share, centred[best])
    return out


def leave_one_out(vectors: Any, groups: Any) -> np.ndarray:
    """Mean vector of a group's other members, float64 (n, d); a member that is alone stays itself.

    What the other people said of a photograph is what a caption has to be found from: with its own vector among
    them, the caption would be given away.

    >>> leave_one_out([[1.0], [3.0], [5.0]], ["a", "a", "b"])[:, 0].tolist()
    [3.0, 1.0, 5.0]
    """
    x = np.asarray(vectors, dtype=np.float64)
    _, number, count = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    if len(number) != len(x):
        raise DataError(f"{len(x)} vectors and {len(number)} groups; legal is one group a vector.")
    total = np.zeros((len(count), x.shape[1]))
    np.add.at(total, number, x)
    size = count[number][:, None]
    return np.where(size > 1, (total[number] - x) / np.maximum(size - 1, 1), x)
