"""The training loop: what a step is, when it stops, that it goes on where it was killed, and what it refuses."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from neuroenc import stats
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.readout import train
from neuroenc.encoders.readout._maps import MapArray, Maps, map_moments


class Linear(nn.Module):
    """A readout as small as one can be."""

    def __init__(self, n_in=8, v=3, alpha=0.0, dtype=torch.float32, noise=0.0, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(v, n_in, generator=generator, dtype=dtype) * 0.1)
        self.bias = nn.Parameter(torch.zeros(v, dtype=dtype))
        self.alpha, self.noise, self.constrained = alpha, noise, 0

    def forward(self, x):
        y = x.flatten(1) @ self.weight.T + self.bias
        return y + self.noise * torch.randn_like(y) if self.training and self.noise else y

    def regulariser(self):
        return self.alpha * self.weight.square().sum()

    def constrain(self):
        self.constrained += 1


def data(n=160, n_in=8, v=3, noise=0.3, nan=0.0, counts=False, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n_in // 4, 2, 2)).astype(np.float32)
    y = x.reshape(n, -1) @ rng.normal(size=(n_in, v)) + noise * rng.normal(size=(n, v))
    if counts:
        y = rng.poisson(np.exp(y / 3)).astype(float)
    y[rng.random(y.shape) < nan] = np.nan
    return x, y.astype(np.float32)


@pytest.mark.parametrize("loss", ["mse", "poisson"])
def test_four_passes_of_eight_rows_are_one_of_32(loss):
    x, y = data(nan=0.4, counts=loss == "poisson")
    models = []
    for batch_size, accumulate in ((32, 1), (8, 4), (5, 7)):
        model = Linear(alpha=0.1, dtype=torch.float64)
        rows = None if accumulate != 7 else np.arange(140)  # 35 rows a step: other steps, so other weights
        train(model, x, y, rows=rows, loss=loss, batch_size=batch_size, accumulate=accumulate, fixed_epochs=3)
        models.append(model)
    torch.testing.assert_close(models[0].weight, models[1].weight, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(models[0].bias, models[1].bias, rtol=1e-12, atol=1e-14)
    assert (models[0].weight - models[2].weight).abs().max() > 1e-4


def test_one_step_is_the_gradient_of_loss_and_penalty():
    x, y = data(n=20, nan=0.3)
    model, reference = Linear(alpha=0.2, dtype=torch.float64), Linear(alpha=0.2, dtype=torch.float64)
    result = train(model, x, y, batch_size=32, fixed_epochs=1, lr=0.01)
    X, Y = torch.as_tensor(x.reshape(20, -1)).double(), torch.as_tensor(y).double()
    value = sum(
        ((X[m] @ reference.weight[v] + reference.bias[v] - Y[m, v]) ** 2).mean()
        for v in range(3)
        for m in [~torch.isnan(Y[:, v])]
    )
    penalty = 0.2 * reference.weight.square().sum()
    (value + penalty).backward()
    torch.optim.Adam(reference.parameters(), lr=0.01).step()
    torch.testing.assert_close(model.weight, reference.weight, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.bias, reference.bias, rtol=1e-10, atol=1e-12)
    row = result.curves.iloc[0]
    np.testing.assert_allclose([row.loss, row.penalty], [float(value.detach()) / 3, float(penalty.detach()) / 3], 1e-6)
    assert model.constrained == result.n_steps == 1
    assert not model.training


def test_converges_to_ridge():
    """Mean squared error plus alpha |w|^2 has the minimum of ridge regression with penalty n alpha."""
    from sklearn.linear_model import Ridge

    x, y = data(n=100)
    model = Linear(alpha=0.1, dtype=torch.float64)
    train(model, x, y, batch_size=100, fixed_epochs=[*[0.03] * 300, *[0.003] * 200, *[0.0003] * 200])
    ridge = Ridge(alpha=10.0).fit(x.reshape(100, -1).astype(float), y.astype(float))
    np.testing.assert_allclose(model.weight.detach(), ridge.coef_, atol=1e-4)


def test_equal_seeds_are_equal_and_others_are_not():
    x, y = data()
    before = torch.random.get_rng_state()
    weights = []
    for seed in (0, 0, 1):
        model = Linear(noise=0.5)
        train(model, x, y, range(30), max_epochs=4, seed=seed)
        weights.append(model.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_early_stopping_keeps_the_best_weights():
    x, y = data(n=60, n_in=40, noise=8.0)  # overfits
    model = Linear(40)
    result = train(model, x, y, range(30), lr=0.02, patience=4, lr_cuts=1, max_epochs=300)
    r = result.curves.validation_r.to_numpy()
    assert len(r) < 300
    assert result.best_epoch == 1 + np.argmax(r)
    assert result.best_r == r.max() > r[-1]
    with torch.no_grad():
        again = stats.pearson_r(y[:30], model(torch.as_tensor(x[:30])).numpy()).mean()
    assert again == result.best_r
    lr = result.curves.lr.to_numpy()
    assert lr[0] == 0.02
    np.testing.assert_allclose(np.unique(lr), [0.02 * 0.3, 0.02])
    assert result.n_steps == len(r)
    assert len(result.schedule) <= result.best_epoch


def test_a_cut_starts_again_from_the_best_weights_and_the_schedule_says_so():
    """Replaying the schedule on the same rows ends close to the weights that were kept, with fewer epochs."""
    x, y = data(n=90, n_in=40, noise=4.0)
    model = Linear(40)
    result = train(model, x, y, range(30), lr=0.05, patience=3, lr_cuts=2, max_epochs=300, batch_size=16)
    lr = result.curves.lr.to_numpy()
    assert len(np.unique(lr)) == 3
    first_cut = int(np.flatnonzero(np.diff(lr))[0]) + 1
    best_before = int(np.argmax(result.curves.validation_r[:first_cut])) + 1
    assert first_cut - best_before == 3
    if result.best_epoch > first_cut:
        assert (result.schedule == 0.05).sum() == best_before
    replayed = Linear(40)
    train(replayed, x, y, rows=range(30, 90), fixed_epochs=result.schedule, batch_size=16)
    distance = (replayed.weight - model.weight).norm() / (Linear(40).weight - model.weight).norm()
    assert float(distance.detach()) < 0.5


SCRIPT = """
    import os, signal, sys
    import numpy as np, torch
    sys.path.insert(0, {here!r})
    from test_train import Linear, data
    from neuroenc.encoders.readout import train, _train
    kill, folder, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    x, y = data(nan=0.2)
    model = Linear(noise=0.5, alpha=0.01)
    if kill:
        judge = _train.Run._judge
        def stop(self, *args):
            judge(self, *args)
            if self.state.epoch == kill:
                os.kill(os.getpid(), signal.SIGKILL)
        _train.Run._judge = stop
    result = train(model, x, y, range(40), max_epochs=12, patience=2, lr=0.05, checkpoint=folder or None, device="cpu")
    state = [p.detach().numpy() for p in model.parameters()]
    curves = result.curves.drop(columns="seconds").to_numpy()
    np.savez(out, *state, curves=curves, best=[result.best_epoch, result.best_r, result.n_steps], path=result.schedule)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [1, 6])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, kill):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT).format(here=os.path.dirname(__file__)))

    def run(kill_at, folder, out):
        command = [sys.executable, str(script), str(kill_at), str(folder), str(out)]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    whole = run(0, "", tmp_path / "whole.npz")
    assert whole.returncode == 0, whole.stderr
    assert run(kill, tmp_path / "state", tmp_path / "none.npz").returncode == -signal.SIGKILL
    assert not (tmp_path / "none.npz").exists()
    on = run(0, tmp_path / "state", tmp_path / "on.npz")
    assert on.returncode == 0, on.stderr
    with np.load(tmp_path / "whole.npz") as a, np.load(tmp_path / "on.npz") as b:
        assert a["curves"].shape[0] > kill
        for name in a.files:
            assert a[name].tobytes() == b[name].tobytes(), name


def test_resuming_at_every_epoch_including_after_the_end(tmp_path, monkeypatch):
    from neuroenc.encoders.readout import _train

    x, y = data()
    whole = Linear(noise=0.5)
    expected = train(whole, x, y, range(40), max_epochs=8, patience=2, lr=0.1)
    epoch, calls = _train.Run._epoch, []

    def one(self, rate):
        if calls:
            calls.clear()
            raise KeyboardInterrupt
        calls.append(1)
        epoch(self, rate)

    monkeypatch.setattr(_train.Run, "_epoch", one)
    for _ in range(20):
        model = Linear(noise=0.5)
        try:
            result = train(model, x, y, range(40), max_epochs=8, patience=2, lr=0.1, checkpoint=tmp_path)
            break
        except KeyboardInterrupt:
            continue
    assert torch.equal(model.weight, whole.weight)
    assert result.curves.drop(columns="seconds").equals(expected.curves.drop(columns="seconds"))
    calls.append(1)  # any further epoch would now raise
    model = Linear(noise=0.5)
    again = train(model, x, y, range(40), max_epochs=8, patience=2, lr=0.1, checkpoint=tmp_path)
    assert torch.equal(model.weight, whole.weight)
    assert again.best_r == expected.best_r
    assert [p.name.split("-")[0] for p in tmp_path.iterdir()] == ["training"]


@pytest.mark.parametrize("change", ["lr", "inputs", "targets", "weights", "penalty", "seed", "rows"])
def test_runs_that_share_a_folder_do_not_mix(tmp_path, change):
    x, y = data()
    settings = {"fixed_epochs": 2, "lr": 0.01, "checkpoint": tmp_path, "rows": range(100)}
    train(Linear(), x, y, **settings)
    train(Linear(), x.copy(), y.copy(), **settings)
    made, other = {"seed": int(change == "weights"), "alpha": 3.0 * (change == "penalty")}, {**settings}
    model = Linear(**made)
    if change == "lr":
        other["lr"] = 0.02
    if change == "seed":
        other["seed"] = 1
    if change == "rows":
        other["rows"] = range(99)
    assert len(list(tmp_path.iterdir())) == 1
    x, y = x + (change == "inputs"), y + (change == "targets")
    train(model, x, y, **other)
    fresh = Linear(**made)
    train(fresh, x, y, **{**other, "checkpoint": None})
    assert torch.equal(model.weight, fresh.weight)
    assert len(list(tmp_path.iterdir())) == 2


class Cored(nn.Module):
    def __init__(self, frozen):
        super().__init__()
        self.core = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        if frozen:
            self.core.requires_grad_(False)
            self.core.frozen = True
        self.readout = Linear(16)

    def forward(self, x):
        return self.readout(self.core(x))


@pytest.mark.parametrize("frozen", [True, False])
def test_buffers_of_a_frozen_core_do_not_drift(frozen, tmp_path):
    x, y = data()
    torch.manual_seed(0)
    model = Cored(frozen)
    before = {k: v.clone() for k, v in model.core.state_dict().items()}
    train(model, 3 + x, y, range(30), max_epochs=3, checkpoint=tmp_path)
    same = [torch.equal(v, before[k]) for k, v in model.core.state_dict().items()]
    assert all(same) if frozen else not any(same)
    from safetensors import safe_open

    with safe_open(next(tmp_path.glob("training-*/tensors.safetensors")), "pt") as handle:
        stored = {k for k in handle.keys() if "core" in k}  # noqa: SIM118
    assert bool(stored) is not frozen  # a large backbone is not written every epoch


def test_a_core_that_is_trained_resumes_with_its_buffers(tmp_path):
    x, y = data()
    models = []
    for epochs, folder in ((5, None), (5, tmp_path)):
        torch.manual_seed(0)
        models.append(Cored(False))
        train(models[-1], x, y, fixed_epochs=epochs, checkpoint=folder)
    a, b = (m.state_dict() for m in models)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_rows_that_nobody_saw_do_not_count():
    x, y = data()
    y[100:] = np.nan
    weights = []
    for n in (160, 100):
        model = Linear()
        train(model, x[:n], y[:n], range(20), max_epochs=3)
        weights.append(model.weight.detach())
    assert torch.equal(*weights)


def test_half_precision_runs_and_learns(tmp_path):
    x, y = data(noise=0.1)
    model = Linear()
    result = train(model, x, y, range(40), lr=0.05, max_epochs=30, precision="bf16", device="cpu")
    assert model.weight.dtype == torch.float32
    assert result.best_r > 0.97
    resumed = Linear()
    train(resumed, x, y, range(40), lr=0.05, max_epochs=30, precision="bf16", device="cpu", checkpoint=tmp_path)
    assert torch.equal(model.weight, resumed.weight)
    single = Linear()
    train(single, x, y, range(40), lr=0.05, max_epochs=30)
    assert not torch.equal(model.weight, single.weight)


def test_context_goes_with_its_rows():
    x, y = data()

    class Two(Linear):
        def forward(self, x, context=None):
            assert context is not None
            assert torch.equal(context[:, 0, 0, 0], x[:, 0, 0, 0] + 1)
            return super().forward(x)

    train(Two(), x, y, range(30), context=(x + 1)[:, :1, :1, :1], max_epochs=2, batch_size=7)


def test_inputs_of_every_kind_give_the_same_weights(tmp_path):
    x, y = data()
    np.save(tmp_path / "x.npy", x)
    forms = {
        "numpy": x,
        "memmap": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "torch": torch.as_tensor(x),
        "streamed": Maps(np.load(tmp_path / "x.npy", mmap_mode="r"), max_memory=100),
        "double": x.astype(np.float64),
    }
    weights = {}
    for name, form in forms.items():
        model = Linear()
        train(model, form, y, range(30), max_epochs=3)
        weights[name] = model.weight.detach()
    assert all(torch.equal(w, weights["numpy"]) for w in weights.values())


def test_images_are_bytes_over_255():
    x = np.random.default_rng(0).integers(0, 256, size=(20, 3, 4, 5)).astype(np.uint8)
    mean, scale = map_moments(MapArray(x))
    np.testing.assert_allclose(mean, (x / 255).mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(scale, (x / 255).std(axis=(0, 2, 3)))
    expected = ((x / 255) - mean[:, None, None]) / scale[:, None, None]
    index = torch.tensor([7, 3, 3, 0])
    for budget in (None, 10):
        maps = Maps(x, mean=mean, scale=scale, max_memory=budget)
        np.testing.assert_allclose(maps.rows(index).numpy(), expected[index], atol=2e-6)


def test_moments_merge_over_blocks():
    x = np.random.default_rng(0).normal(1000, [[[[1.0]], [[2.0]], [[0.0]]]], size=(50, 3, 4, 4)).astype(np.float32)
    array = MapArray(x)
    array.blocks = lambda budget=0: (x[i : i + 7] for i in range(0, 50, 7))
    mean, scale = map_moments(array)
    np.testing.assert_allclose(mean, x.astype(float).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(scale[:2], x.astype(float).std(axis=(0, 2, 3))[:2], rtol=1e-8)
    assert scale[2] == 1


def test_accelerate_gives_the_same_weights(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    x, y = data(nan=0.3)
    plain, through = Linear(noise=0.2, alpha=0.01), Linear(noise=0.2, alpha=0.01)
    settings = {"max_epochs": 5, "batch_size": 16, "accumulate": 2, "device": "cpu"}
    a = train(plain, x, y, range(30), **settings)
    b = train(through, x, y, range(30), **settings, accelerator=accelerate.Accelerator(cpu=True), checkpoint=tmp_path)
    assert torch.equal(plain.weight, through.weight)
    assert a.best_r == b.best_r
    with pytest.raises(ConfigError, match="mixed_precision='bf16'"):
        train(Linear(), x, y, fixed_epochs=1, precision="bf16", accelerator=accelerate.Accelerator(cpu=True))


PROCESSES = """
    import sys
    import numpy as np, torch
    sys.path.insert(0, {here!r})
    from accelerate import Accelerator
    from test_train import Linear, data
    from neuroenc.encoders.readout import train
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2, accelerator.num_processes
    x, y = data(n=131, nan=0.3)
    model = Linear(alpha=0.01)
    result = train(model, x, y, range(31), max_epochs=4, batch_size=9, accumulate=2, accelerator=accelerator,
                   checkpoint=sys.argv[2])
    if accelerator.is_main_process:
        np.savez(sys.argv[1], weight=model.weight.detach().numpy(), r=result.best_r, curves=result.curves.to_numpy())
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Rows are shared out, an odd one included, and gradients are those of all rows together."""
    pytest.importorskip("accelerate")
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(PROCESSES).format(here=os.path.dirname(__file__)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(tmp_path / "out.npz"), str(tmp_path / "state")],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    x, y = data(n=131, nan=0.3)
    model = Linear(alpha=0.01)
    result = train(model, x, y, range(31), max_epochs=4, batch_size=9, accumulate=2)
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["weight"], model.weight.detach(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["r"], result.best_r, atol=1e-5)
        np.testing.assert_allclose(found["curves"][:, 1:3], result.curves[["loss", "penalty"]], rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({}, ConfigError, "needs validation rows"),
        ({"validation": range(10), "fixed_epochs": 3}, ConfigError, "pass one of the two"),
        ({"fixed_epochs": 0}, ConfigError, "at least 1"),
        ({"fixed_epochs": [0.1, -1]}, ConfigError, "finite and positive"),
        ({"validation": [0, 999]}, DataError, "position 999; there are 160 rows"),
        ({"validation": [0, 0]}, DataError, "twice"),
        ({"validation": np.ones(3, bool)}, DataError, "mask"),
        ({"validation": range(10), "rows": range(5, 50)}, DataError, "5 rows are in training and in validation"),
        ({"validation": range(160)}, DataError, "no training rows"),
        ({"fixed_epochs": 1, "loss": "mae"}, ConfigError, "unknown loss"),
        ({"fixed_epochs": 1, "loss": "poisson"}, DataError, "negative"),
        ({"fixed_epochs": 1, "optimiser": "adamm"}, ConfigError, "did you mean 'adam'"),
        ({"fixed_epochs": 1, "precision": "8"}, ConfigError, "unknown precision"),
        ({"fixed_epochs": 1, "lr": 0.0}, ConfigError, "lr=0.0"),
        ({"fixed_epochs": 1, "batch_size": 0}, ConfigError, "batch_size=0"),
        ({"fixed_epochs": 1, "accumulate": 1.5}, ConfigError, "accumulate=1.5"),
        ({"fixed_epochs": 1, "accelerator": "yes"}, ConfigError, "Legal: auto"),
        ({"fixed_epochs": 1, "context": np.zeros((5, 1))}, DataError, "160 rows, context 5"),
    ],
)
def test_bad_settings(settings, error, match):
    x, y = data()
    with pytest.raises(error, match=match):
        train(Linear(), x, y, **settings)


def test_bad_data():
    x, y = data()
    with pytest.raises(DataError, match="160 rows, targets 100"):
        train(Linear(), x, y[:100], fixed_epochs=1)
    with pytest.raises(DataError, match="4 voxels"):
        train(Linear(), x, np.c_[y, y[:, :1]], fixed_epochs=1)
    constant = y.copy()
    constant[:30] = 1
    with pytest.raises(DataError, match="no voxel varies over the 30 validation rows"):
        train(Linear(), x, constant, range(30), max_epochs=2)
    with pytest.raises(DataError, match="not finite in epoch 1"):
        train(Linear(), x * np.float32(1e30), y, fixed_epochs=1)
    with pytest.raises(ConfigError, match="nothing to train"):
        train(Linear().requires_grad_(False), x, y, fixed_epochs=1)
