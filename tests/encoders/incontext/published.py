"""BraInCoRL spelled out from its equations on torch's own layers, and nothing of the package's code.

Every voxel has its own copy of the images, attention goes through `torch.nn.MultiheadAttention` and gives back its
weights (as the released model does), every block computes every token.
"""

import math

import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, n_in, n_out, hidden):
        super().__init__()
        act = nn.LeakyReLU(0.1)
        self.block = nn.Sequential(
            nn.LayerNorm(n_in),
            act,
            nn.Dropout(0.0),
            nn.Linear(n_in, hidden),
            nn.LayerNorm(hidden),
            act,
            nn.Dropout(0.0),
            nn.Linear(hidden, n_out),
        )
        self.bypass = nn.Linear(n_in, n_out)

    def forward(self, c):
        return self.block(c) + self.bypass(c)


class Gated(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)

    def forward(self, z):
        a, b = self.linear1(z).chunk(2, dim=-1)
        return self.linear2(nn.functional.silu(a) * b)


class PublishedBlock(nn.Module):
    def __init__(self, dim, hidden, heads):
        super().__init__()
        self.layer_norm_1, self.layer_norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ffn = Gated(dim, hidden)

    def forward(self, z, weigh=True):
        h = self.layer_norm_1(z)
        added, weights = self.attn(math.log(h.shape[1]) * h, h, h, need_weights=weigh)
        z = z + added
        return z + self.ffn(self.layer_norm_2(z)), weights


class Published(nn.Module):
    """``weigh`` materialises attention weights, as the released model does."""

    def __init__(self, n_features, dim, depth, heads=10, hidden=2048, registers=4, weigh=True):
        super().__init__()
        self.early_layers = nn.Sequential(Residual(n_features + 1, dim, 2 * dim))
        self.cls_token = nn.Parameter(torch.randn(1, registers, dim) / math.sqrt(dim + 1))
        self.transformer = nn.Sequential(*(PublishedBlock(dim, hidden, heads) for _ in range(depth)))
        self.weight_pred = nn.Sequential(Residual(dim, n_features + 1, 2 * dim))
        self.weigh = weigh

    def forward(self, x, y):
        """Images (voxel, support, feature), each voxel's own, and responses (voxel, support) to (w, b)."""
        z = self.early_layers(torch.cat([x, y[..., None]], dim=-1))
        z = torch.cat([self.cls_token.repeat(len(x), 1, 1), z], dim=1)
        for block in self.transformer:
            z, self.weights = block(z, self.weigh)
        return self.weight_pred(z[:, 0])


def stirred(model, seed=0, scale=0.1):
    """Norms away from 1 and biases away from 0: at their starting values a fault could hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(scale * torch.randn(p.shape, generator=generator))
    return model.eval()
