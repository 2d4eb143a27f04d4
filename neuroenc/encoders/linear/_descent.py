"""Linear encoders by stochastic gradient descent, as BrainSCUBA fitted them."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import at_least, check_whole
from neuroenc._core.device import resolve_device
from neuroenc._core.errors import DataError
from neuroenc._core.optional import require


def descent_weights(
    X: Any,
    Y: Any,
    *,
    epochs: int = 100,
    batch_size: int = 32,
    lr: float = 3e-4,
    final_lr: float = 1.5e-4,
    weight_decay: float = 1.5e-2,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    r"""Linear weights of all voxels by AdamW on the squared error, with the published settings.

    .. math:: \min_{w_v, b_v} \frac1B \sum_{i \in \mathrm{batch}} (y_{iv} - x_i \cdot w_v - b_v)^2, \qquad
              \mathrm{lr}_e = \mathrm{lr} \, (\mathrm{lr}_{end} / \mathrm{lr})^{e / E}

    AdamW does not mind the scale of a loss: a voxel's weights are those of a mean over voxels too, and depend on no
    other voxel. They start from random numbers, uniform in :math:`\pm 1/\sqrt{d}`. Closed-form
    ridge (`ridge_weights`) reaches the minimum at once and chooses its penalty; see the guide on captions for the two
    side by side.

    Parameters
    ----------
    X : array (n, feature), or (copy, n, feature)
        Features; of several copies (augmented pictures) each row takes one at random in each epoch.
    Y : array (n, voxel)
        Responses.
    epochs, batch_size : int
    lr, final_lr : float
        Learning rate of the first epoch, and the one that it falls to exponentially.
    weight_decay : float
        Decoupled, of weights and intercepts.
    seed : int
        Of first weights, order and copies.
    device : str
        A torch device, or "auto".

    Returns
    -------
    coef : ndarray (feature, voxel)
        float32.
    intercept : ndarray (voxel,)

    Raises
    ------
    DataError
        Shapes that do not fit, or values that are not finite.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (section 3.1). Loshchilov & Hutter (2019), AdamW, ICLR.

    Examples
    --------
    >>> x = np.linspace(-1, 1, 40)[:, None]
    >>> coef, intercept = descent_weights(x, 2 * x + 1, lr=0.05, final_lr=0.01, weight_decay=0.0)
    >>> coef.round(2).tolist(), intercept.round(2).tolist()
    ([[2.0]], [1.0])
    """
    check_whole("epochs", epochs)
    check_whole("batch_size", batch_size)
    at_least("lr", lr, above=True)
    at_least("final_lr", final_lr, above=True)
    at_least("weight_decay", weight_decay)
    x, y = (as_numpy(a, what).astype(np.float32) for a, what in ((X, "features"), (Y, "responses")))
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or y.ndim != 2 or x.shape[1] != len(y) or not len(y):
        raise DataError(f"X {x.shape} and Y {y.shape} do not fit; legal is (copy, n, feature) and (n, voxel).")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("X and Y must be finite.")
    torch = require("torch", "clip")
    where = resolve_device(device)
    # A row of first weights for each voxel, and rows in an order that no number of voxels changes.
    first = torch.rand(y.shape[1], x.shape[2] + 1, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    first = ((2 * first - 1) * x.shape[2] ** -0.5).to(where)
    w, b = first[:, :-1].clone(), first[:, -1].clone()
    inputs, targets = torch.as_tensor(x).to(where), torch.as_tensor(y).to(where)
    optimiser = torch.optim.AdamW([w, b], lr=lr, weight_decay=weight_decay)
    n = len(y)
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = lr * (final_lr / lr) ** (epoch / epochs)
        order = torch.randperm(n, generator=generator).to(where)
        copy = torch.randint(len(x), (n,), generator=generator).to(where)
        for start in range(0, n, batch_size):
            rows = order[start : start + batch_size]
            batch = inputs[copy[start : start + batch_size], rows]
            error = torch.addmm(b - targets[rows], batch, w.T).mul_(2 / len(rows))
            w.grad, b.grad = error.T @ batch, error.sum(dim=0)
            optimiser.step()
    return w.T.cpu().numpy(), b.cpu().numpy()
