"""Claims about attention: positions and length (Kazemnejad et al., NeurIPS 2023), sigmoid for softmax (Ramapuram et
al., 2024).

Seeds, recipes and margins were fixed before the first run.

- Sorting distinct numbers, trained on at most 12, all in the right order at 24: no positions >= .7, learned absolute
  positions <= .1, rotary at least .4 below no positions.
- In-context regression: R2 of sigmoid attention within .01 of softmax, on average over lengths seen in training;
  without its bias of -ln n it is worse.

Measured: no positions .97, rotary .005, learned .60 (its claim fails); softmax .709, sigmoid .706, without bias .570.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from neuroenc.attention import AbsolutePosition, Attention, Block, LengthScale, Rotary, Sigmoid, Softmax, Stack

SEED = 0
NUMBERS, TRAINED, LONG = 64, 12, 24


def optimise(model, loss_of_step, steps):
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    warm = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1.0, (s + 1) / 100) * min(1.0, (steps - s) / 300))
    for step in range(steps):
        loss = loss_of_step(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        warm.step()
    return model.eval()


class Sorter(nn.Module):
    """A decoder: numbers, a mark, then the same numbers in order."""

    def __init__(self, position):
        super().__init__()
        self.embed = nn.Embedding(NUMBERS + 1, 64)
        nn.init.normal_(self.embed.weight, std=0.3)
        self.absolute = position if isinstance(position, AbsolutePosition) else None
        inside = None if self.absolute is not None else position
        self.blocks = nn.ModuleList(Block(Attention(64, 4, position=inside, causal=True), hidden=128) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, NUMBERS)

    def forward(self, given, ordered):
        mark = torch.full((len(given), 1), NUMBERS)
        z = self.embed(torch.cat([given, mark, ordered[:, :-1]], dim=1))
        z = z if self.absolute is None else self.absolute.add(z)
        for block in self.blocks:
            z = block(z)[0]
        return self.head(self.norm(z[:, given.shape[1] :]))


def cases(count, n, generator):
    given = torch.rand(count, NUMBERS, generator=generator).argsort(-1)[:, :n]
    return given, given.sort(-1).values


def sorter(position):
    torch.manual_seed(SEED)
    model, generator = Sorter(position), torch.Generator().manual_seed(SEED)

    def loss(step):
        n = int(torch.randint(2, TRAINED + 1, (), generator=generator))
        given, ordered = cases(128, n, generator)
        return F.cross_entropy(model(given, ordered).flatten(0, 1), ordered.flatten())

    return optimise(model, loss, steps=1000)


@torch.no_grad()
def exact(model, n):
    """Share of cases all of whose numbers are right; what greedy decoding would get."""
    given, ordered = cases(200, n, torch.Generator().manual_seed(SEED + n))
    return float((model(given, ordered).argmax(-1) == ordered).all(-1).float().mean())


@pytest.fixture(scope="module")
def sorters():
    torch.manual_seed(SEED)
    positions = {"none": None, "learned": AbsolutePosition(64, "learned", length=2 * LONG), "rotary": Rotary()}
    return {name: sorter(position) for name, position in positions.items()}


@pytest.mark.slow
def test_all_sort_what_they_were_trained_on(sorters):
    assert min(exact(model, TRAINED) for model in sorters.values()) > 0.9


@pytest.mark.slow
def test_no_positions_reach_twice_the_length(sorters):
    assert exact(sorters["none"], LONG) >= 0.7


@pytest.mark.slow
def test_rotary_does_not(sorters):
    assert exact(sorters["rotary"], LONG) <= exact(sorters["none"], LONG) - 0.4


@pytest.mark.slow
@pytest.mark.xfail(
    reason="0.60 exact at 24: a table that starts at 0.02 beside tokens of 0.3 is still near 0 where training never "
    "reached, and then there are no positions",
)
def test_learned_positions_do_not(sorters):
    assert exact(sorters["learned"], LONG) <= 0.1


@pytest.mark.slow
def test_learned_positions_as_large_as_tokens_do_not():
    """Added after the failure above had been seen, to check its explanation; measured 0.985 at 12, 0 at 24."""
    torch.manual_seed(SEED)
    position = AbsolutePosition(64, "learned", length=2 * LONG)
    nn.init.normal_(position.table, std=0.3)
    model = sorter(position)
    assert exact(model, TRAINED) > 0.9
    assert exact(model, LONG) <= 0.1


class Regressor(nn.Module):
    """Weights of a linear voxel from (stimulus, response) pairs."""

    def __init__(self, normaliser):
        super().__init__()
        self.token, self.head = nn.Linear(17, 64), nn.Linear(64, 16)
        make = lambda: Attention(64, 4, normaliser=normaliser, scale=LengthScale("none"))  # noqa: E731
        self.stack = Stack([Block(make(), hidden=128) for _ in range(3)], registers=2)

    def forward(self, z, y):
        return self.head(self.stack(self.token(torch.cat([z, y], dim=-1)), keep=slice(0, 1))[0][:, 0])


def episode(count, n, generator):
    w = torch.randn(count, 16, 1, generator=generator) / 4
    z = torch.randn(count, n + 32, 16, generator=generator)
    signal = z @ w
    y = signal[:, :n] + 0.3 * torch.randn(count, n, 1, generator=generator)
    return z[:, :n], y, z[:, n:], signal[:, n:]


def mean_r2(normaliser):
    torch.manual_seed(SEED)
    model, generator = Regressor(normaliser), torch.Generator().manual_seed(SEED)

    def loss(step):
        z, y, query, right = episode(64, int(torch.randint(8, 65, (), generator=generator)), generator)
        return (query @ model(z, y)[..., None] - right).square().mean()

    optimise(model, loss, steps=1500)
    scores = []
    with torch.no_grad():
        for n in (8, 16, 32, 64):
            z, y, query, right = episode(500, n, torch.Generator().manual_seed(SEED + n))
            miss = (query @ model(z, y)[..., None] - right).square().mean()
            scores.append(float(1 - miss / right.var()))
    assert all(math.isfinite(s) for s in scores)
    return sum(scores) / len(scores)


@pytest.mark.slow
def test_sigmoid_is_as_good_as_softmax():
    found = {
        name: mean_r2(normaliser)
        for name, normaliser in {"softmax": Softmax(), "sigmoid": Sigmoid(), "no bias": Sigmoid(0.0)}.items()
    }
    assert abs(found["sigmoid"] - found["softmax"]) <= 0.01
    assert found["no bias"] < found["sigmoid"]
