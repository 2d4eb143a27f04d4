"""How queries grow with the number of tokens they look at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LengthScale", "count_keys"]

_KINDS = ("none", "log_n", "learned")


class LengthScale(nn.Module):
    r"""Factor of the queries as a function of the number of keys, so that attention stays sharp in long contexts.

    .. math:: s(n) = 1, \quad \ln n, \quad\text{or}\quad a_h + b_h \ln n

    Parameters
    ----------
    kind : {"none", "log_n", "learned"}
        ``"learned"`` has an :math:`a_h` and a :math:`b_h` per head, at first 1 and 0.
    heads : int
        For ``"learned"``.
    before_projection : bool
        True scales what goes into the query projection, as the released BraInCoRL does: its bias stays unscaled.
        False scales the projected query. Registers count as keys in both.

    References
    ----------
    Yu et al. (2025), BraInCoRL, arXiv:2505.15813 (the released code has natural logarithms).

    Examples
    --------
    >>> import torch
    >>> LengthScale("log_n")(torch.tensor([1.0, 100.0])).flatten()
    tensor([0.0000, 4.6052])
    """

    def __init__(self, kind: str = "none", heads: int = 1, before_projection: bool = True) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"unknown length scale {kind!r}; legal: {', '.join(_KINDS)}.")
        self.kind, self.before_projection = kind, before_projection
        if kind == "learned":
            self.level = nn.Parameter(torch.ones(heads))
            self.slope = nn.Parameter(torch.zeros(heads))

    def forward(self, n: Tensor) -> Tensor:
        """Factors (batch, heads or 1, 1, 1) for n (batch,) keys."""
        n = (n if n.dtype == torch.float64 else n.to(torch.float32)).view(-1, 1, 1, 1)
        if self.kind == "log_n":
            return n.log()
        if self.kind == "learned":
            return self.level.view(1, -1, 1, 1) + self.slope.view(1, -1, 1, 1) * n.log()
        return torch.ones_like(n)


def count_keys(source: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """Number of keys (batch,) of tokens (batch, key, dim): the sum of their weights.

    Examples
    --------
    >>> import torch
    >>> count_keys(torch.zeros(2, 501, 8, dtype=torch.bfloat16))
    tensor([501., 501.])
    """
    if log_weight is not None:
        return log_weight.to(torch.promote_types(log_weight.dtype, torch.float32)).exp().sum(-1)
    # Half precision holds no 501.
    kind = torch.promote_types(source.dtype, torch.float32)
    return torch.full(source.shape[:1], source.shape[1], dtype=kind, device=source.device)
