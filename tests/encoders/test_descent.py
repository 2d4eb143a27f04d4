"""Linear encoders by gradient descent: PyTorch's own layer and loss, company, copies, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders import descent_weights

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 4)).astype(np.float32)
Y = (X @ RNG.standard_normal((4, 3)) + 0.1 * RNG.standard_normal((30, 3))).astype(np.float32)
HOW = {"epochs": 5, "lr": 0.02, "final_lr": 0.01, "seed": 3}


def test_it_is_the_layer_and_the_loss_of_the_published_training():
    """`torch.nn.Linear`, the mean squared error over batch and voxels, AdamW, a rate that halves over the epochs."""
    layer, generator = torch.nn.Linear(4, 3), torch.Generator().manual_seed(4)
    first = torch.rand(3, 5, generator=torch.Generator().manual_seed(3)) - 0.5
    layer.weight.data, layer.bias.data = first[:, :4].clone(), first[:, 4].clone()
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.02, weight_decay=1.5e-2)
    for epoch in range(5):
        optimiser.param_groups[0]["lr"] = 0.02 * 0.5 ** (epoch / 5)
        order = torch.randperm(30, generator=generator)
        torch.randint(1, (30,), generator=generator)
        for rows in order.split(8):
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(layer(torch.as_tensor(X)[rows]), torch.as_tensor(Y)[rows]).backward()
            optimiser.step()
    coef, intercept = descent_weights(X, Y, batch_size=8, **HOW)
    np.testing.assert_allclose(coef, layer.weight.detach().numpy().T, atol=1e-5)
    np.testing.assert_allclose(intercept, layer.bias.detach().numpy(), atol=1e-5)


def test_a_voxel_does_not_depend_on_the_others_and_equal_copies_are_one():
    coef, intercept = descent_weights(X, Y, **HOW)
    alone = descent_weights(np.stack([X, X]), Y[:, :1], **HOW)
    np.testing.assert_allclose(alone[0], coef[:, :1], atol=1e-5)
    np.testing.assert_allclose(alone[1], intercept[:1], atol=1e-5)


def test_copies_are_drawn_anew_in_each_epoch():
    """Of a copy that tells of the response and one that is noise, weights lie between those of either."""
    noise = RNG.standard_normal(X.shape).astype(np.float32)
    how = {"epochs": 300, "lr": 0.02, "final_lr": 0.001, "weight_decay": 0.0}
    size = [np.linalg.norm(descent_weights(x, Y, **how)[0]) for x in (X, np.stack([X, noise]), noise)]
    assert size[0] > size[1] > size[2]


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"X \(1, 30, 4\) and Y \(29, 3\) do not fit"):
        descent_weights(X, Y[:29])
    with pytest.raises(DataError, match="finite"):
        descent_weights(X, np.full_like(Y, np.inf))
    with pytest.raises(ConfigError, match="lr"):
        descent_weights(X, Y, lr=0.0)
