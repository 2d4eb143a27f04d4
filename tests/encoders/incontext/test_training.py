"""Stages of training: resumption, schedule, losses, sources, processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import read_json, seal_folder, write_json
from neuroenc.data.simulate import Nuisances
from neuroenc.encoders import InContextEncoder
from neuroenc.encoders.incontext import (
    Episode,
    MixedEpisodes,
    ResponseEpisodes,
    SyntheticEpisodes,
    WeightPrior,
    load_model,
    make_model,
    make_stage,
    save_model,
    train_stage,
    validation_episodes,
)
from neuroenc.encoders.incontext._hint import hint_error
from neuroenc.encoders.incontext._training import episode_loss, explained_variance

IMAGES = np.random.default_rng(0).standard_normal((500, 6)).astype(np.float32)
SMALL = {"dim": 16, "depth": 1, "hidden": 32}
QUICK = {"support": (10, 40), "query": 20, "voxels": 8, "evaluate_every": 5, "max_steps": 20, "warmup": 3}


def new_model(form="anchored", seed=0):
    if form == "experts":
        return make_model("small", n_features=6, seed=seed, experts=["V1", "FFA"], **SMALL)
    return make_model("small", n_features=6, form=form, seed=seed, **SMALL)


def states_equal(a, b):
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


@pytest.mark.parametrize("form", ["anchored", "query"])
def test_deployed_training_is_on_what_the_encoder_gives(form):
    """Precisions of trials and pooled levels are those of `InContextEncoder`, some responses missing."""
    source = SyntheticEpisodes(IMAGES, nuisances=Nuisances(outlying_trials=0.2, missing=0.1))
    episode, model = source.draw(np.random.default_rng(0), 40, 25, 30), new_model(form).eval()
    with torch.no_grad():  # A new network changes nothing yet.
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    encoder = InContextEncoder(model, response_scale="as-is").fit(episode.x.numpy(), episode.y.T.numpy())
    used = torch.as_tensor(encoder.predict(episode.xq.numpy()).T)
    with torch.no_grad():
        losses = [float(episode_loss(model, episode, make_stage("extend", deployed=d))) for d in (True, False)]
    assert losses[0] == pytest.approx(float((used - episode.yq).square().mean()), rel=1e-4)
    assert losses[1] != pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("form", ["anchored", "published"])
def test_training_lowers_the_loss_of_voxels_kept_apart(form):
    source = SyntheticEpisodes(IMAGES, ceiling=(0.5, 0.9))
    held = validation_episodes(source, (20, 40), n_voxels=32, seed=9)
    model = new_model(form).eval()
    with torch.no_grad():
        before = np.mean([float(explained_variance(model(e.x, e.y), e).mean()) for e in held])
    found = train_stage(model, source, "extend", validation=held, **{**QUICK, "max_steps": 150, "evaluate_every": 50})
    assert found.curves.validation_ev.max() > before + (0.0 if form == "anchored" else 0.1)
    assert found.best_step in set(found.curves.step)
    with torch.no_grad():
        after = float(np.mean([float(episode_loss(model, e, make_stage("extend"))) for e in held]))
    assert after == pytest.approx(found.best_loss, rel=1e-5)  # the best weights were kept


@pytest.mark.parametrize("form", ["anchored", "published", "experts"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, form):
    source = MixedEpisodes([SyntheticEpisodes(IMAGES), SyntheticEpisodes(IMAGES, ceiling=(0.8, 0.9))], [0.5, 0.5])
    if form == "experts":
        names = np.repeat(["V1", "FFA"], 10)
        source = ResponseEpisodes([(IMAGES, np.tile(IMAGES, 4)[:, :20])], groups=[names])
    whole = new_model(form)
    straight = train_stage(whole, source, "extend", **QUICK)
    parts = 0
    while True:
        model = new_model(form)
        # No time at all: every call stops after its first evaluation, as if it had been killed there.
        found = train_stage(model, source, "extend", checkpoint=tmp_path / "c", max_seconds=0.0, **QUICK)
        parts += 1
        if found.curves.step.iloc[-1] == QUICK["max_steps"]:
            break
        reopen(tmp_path / "c")
    assert parts == 4
    assert states_equal(whole, model)
    columns = ["step", "loss", "validation_loss", "validation_ev", "lr"]
    pd.testing.assert_frame_equal(straight.curves[columns], found.curves[columns])


def reopen(folder):
    """Take back that the time was over: what a kill would have left."""
    path = next(Path(folder).glob("training-*/state.json"))
    state = read_json(path)
    assert state["value"]["done"]
    state["value"]["done"] = False
    write_json(path, state)
    record = read_json(path.with_name("_result.json"))
    kept = {k: v for k, v in record.items() if k not in ("seal", "files")}
    path.with_name("_result.json").unlink()
    seal_folder(path.parent, "_result.json", kept)


@pytest.mark.parametrize("changed", ["responses", "features", "prior", "share", "ceiling"])
def test_checkpoint_knows_what_it_was_trained_on(tmp_path, changed):
    """Validation is the same: only the training subjects, far from its first draws, are not."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((300, 6)), rng.standard_normal((300, 12))

    def source(what=""):
        x, y = X.copy(), Y.copy()
        if what == "responses":
            y[250, 3] += 1e-3
        if what == "features":
            x[120, 0] += 1e-3
        prior = WeightPrior.isotropic(6, 2.0 if what == "prior" else 1.0)
        ceiling = (0.05, 0.8 if what == "ceiling" else 0.9)
        shares = [0.5, 0.6 if what == "share" else 0.5]
        return MixedEpisodes([SyntheticEpisodes(X, prior, ceiling=ceiling), ResponseEpisodes([(x, y)])], shares)

    held = validation_episodes(SyntheticEpisodes(IMAGES), [10], query=20, seed=1)
    shape = {"checkpoint": tmp_path, "validation": held, **QUICK}
    train_stage(new_model(), source(), "extend", **shape)
    train_stage(new_model(), source(), "extend", **shape)
    assert len(list(tmp_path.iterdir())) == 1
    train_stage(new_model(), source(changed), "extend", **shape)
    train_stage(new_model(), source(), "extend", **{**shape, "lr": 2e-3})
    assert len(list(tmp_path.iterdir())) == 3


def test_seed_decides_and_the_callers_random_numbers_stay():
    source = SyntheticEpisodes(IMAGES)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = new_model(), new_model(), new_model()
    train_stage(a, source, "extend", seed=1, **QUICK)
    assert torch.equal(torch.rand(3), expected)
    train_stage(b, source, "extend", seed=1, **QUICK)
    train_stage(c, source, "extend", seed=2, **QUICK)
    assert states_equal(a, b)
    assert not states_equal(a, c)


def test_plateau_schedule_is_that_of_torch():
    from neuroenc.encoders.incontext._training import _Run

    stage = make_stage("extend", lr=1e-3, min_lr=1e-6, patience=2, cooldown=1, threshold=1e-3, stop_patience=1000)
    held = np.concatenate([np.linspace(1, 0.5, 5), np.full(9, 0.5), [0.4], np.full(8, 0.4)])
    run = _Run(new_model(), SyntheticEpisodes(IMAGES), stage, [], 0, torch.device("cpu"), None, None, None)
    ours = []
    for value in held:
        run._judge(float(value))
        ours.append(run.state.lr)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=stage.factor, patience=2, cooldown=1, threshold=1e-3, min_lr=1e-6
    )
    theirs = []
    for value in held:
        schedule.step(float(value))
        theirs.append(optimiser.param_groups[0]["lr"])
    np.testing.assert_allclose(ours, theirs)


def test_losses_by_hand():
    rng = np.random.default_rng(1)
    episode = SyntheticEpisodes(IMAGES).draw(rng, 5, 30, 12)
    yq = episode.yq.clone()
    yq[2, 3] = torch.nan
    episode = episode._replace(yq=yq)
    model = new_model("published").eval()
    found = model(episode.x, episode.y)
    predicted = (episode.xq.double() @ found.coef.double().T + found.intercept.double()).T.detach().numpy()
    error = (predicted - yq.numpy()) ** 2
    mse = np.nanmean(error)
    assert float(episode_loss(model, episode, make_stage("extend"))) == pytest.approx(mse, rel=1e-5)
    w, v = found.coef.detach().numpy(), episode.weights[:, :-1].numpy()
    cosine = (w * v).sum(1) / np.linalg.norm(w, axis=1) / np.linalg.norm(v, axis=1)
    stage = make_stage("extend", loss="weights", response_weight=0.3)
    assert float(episode_loss(model, episode, stage)) == pytest.approx((1 - cosine).mean() + 0.3 * mse, rel=1e-4)
    ev = explained_variance(found, episode).detach().numpy()
    for voxel in range(5):
        seen = ~np.isnan(yq[voxel].numpy())
        left = np.var(predicted[voxel, seen] - yq[voxel, seen].numpy())
        assert ev[voxel] == pytest.approx(1 - left / np.var(yq[voxel, seen].numpy()), rel=1e-4)
    anchored = new_model().eval()
    found = anchored(episode.x, episode.y, covariance=True)
    variance = found.variance(episode.xq).detach().numpy()
    error = (found.predict(episode.xq).detach().numpy() - yq.numpy()) ** 2
    expected = np.nanmean(0.5 * (np.log(2 * np.pi * variance) + error / variance))
    stage = make_stage("extend", loss="likelihood")
    assert float(episode_loss(anchored, episode, stage)) == pytest.approx(expected, rel=1e-4)


def test_synthetic_voxels_have_the_planted_ceiling_and_unit_variance():
    source = SyntheticEpisodes(IMAGES, ceiling=(0.3, 0.3), offset=0.0)
    episode = source.draw(np.random.default_rng(2), 400, 200, 100)
    signal = episode.weights[:, :-1] @ torch.cat([episode.x, episode.xq]).T + episode.weights[:, -1:]
    responses = torch.cat([episode.y, episode.yq], dim=1)
    assert float(responses.var(1).mean()) == pytest.approx(1.0, abs=0.03)
    assert float(signal.var(1).mean()) == pytest.approx(0.3, abs=0.03)
    assert float((responses - signal).var(1).mean()) == pytest.approx(0.7, abs=0.03)
    assert abs(float(responses.mean())) < 0.02
    # No image is in the support and among the queries.
    assert len(torch.cat([episode.x, episode.xq]).unique(dim=0)) == 300


def test_prior_gives_the_directions():
    from neuroenc.encoders.incontext import PriorMixture

    prior = PriorMixture.build(IMAGES, [np.diag([1.0, 0, 0, 0, 0, 0])])
    source = SyntheticEpisodes(IMAGES, prior, isotropic_share=0.0)
    weights = source.draw(np.random.default_rng(0), 20, 10, 5).weights
    assert float(weights[:, 1:6].abs().max()) < 1e-6
    mixed = SyntheticEpisodes(IMAGES, prior, isotropic_share=0.5).draw(np.random.default_rng(0), 200, 10, 5).weights
    share = float((mixed[:, 1:6].abs().max(1).values > 1e-6).float().mean())
    assert 0.35 < share < 0.65


def test_episodes_from_zarr_are_those_from_memory(tmp_path):
    zarr = pytest.importorskip("zarr")
    rng = np.random.default_rng(3)
    y = rng.standard_normal((500, 9)).astype(np.float32)
    y[rng.random(y.shape) < 0.1] = np.nan
    stored = []
    for name, values in (("x", IMAGES), ("y", y)):
        array = zarr.create_array(tmp_path / f"{name}.zarr", shape=values.shape, chunks=(64, 3), dtype="float32")
        array[:] = values
        stored.append(zarr.open_array(tmp_path / f"{name}.zarr", mode="r"))
    for memory, store in (
        (ResponseEpisodes([(IMAGES, y)]), ResponseEpisodes([(stored[0], stored[1])])),
        (SyntheticEpisodes(IMAGES), SyntheticEpisodes(stored[0])),
    ):
        a, b = (s.draw(np.random.default_rng(7), 4, 30, 20) for s in (memory, store))
        for one, other in zip(a, b):
            if isinstance(one, torch.Tensor):
                np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_real_episodes_keep_rows_and_voxels_together():
    x = np.arange(60, dtype=np.float32)[:, None].repeat(2, 1)
    y = np.arange(60, dtype=np.float32)[:, None] + 100 * np.arange(5, dtype=np.float32)
    episode = ResponseEpisodes([(x, y)]).draw(np.random.default_rng(0), 3, 20, 10)
    trials = torch.cat([episode.x, episode.xq])[:, 0]
    responses = torch.cat([episode.y, episode.yq], dim=1)
    offsets = responses - trials
    assert (offsets == offsets[:, :1]).all()
    assert len(trials.unique()) == 30
    # A subject with few trials gives what it has, and keeps queries.
    small = ResponseEpisodes([(x, y)]).draw(np.random.default_rng(0), 3, 500, 10)
    assert (small.x.shape[0], small.xq.shape[0]) == (50, 10)


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="pretrain"):
        make_stage("pretain")
    with pytest.raises(ConfigError, match="max_steps"):
        make_stage("extend", max_step=3)
    with pytest.raises(ConfigError, match="support"):
        make_stage("extend", support=(50, 10))
    with pytest.raises(DataError, match="6 features"):
        train_stage(make_model("small", n_features=7, **SMALL), SyntheticEpisodes(IMAGES), "extend", **QUICK)
    with pytest.raises(ConfigError, match="anchored"):
        train_stage(new_model("published"), SyntheticEpisodes(IMAGES), "extend", **QUICK, loss="likelihood")
    real = ResponseEpisodes([(IMAGES, np.ones((500, 3)) * IMAGES[:, :3])])
    with pytest.raises(ConfigError, match="true weights"):
        train_stage(new_model(), real, "extend", **QUICK, loss="weights")
    with pytest.raises(DataError, match="there are 500"):
        SyntheticEpisodes(IMAGES).draw(np.random.default_rng(0), 3, 490, 20)
    with pytest.raises(ConfigError, match="precision"):
        train_stage(new_model(), SyntheticEpisodes(IMAGES), "extend", **QUICK, precision="8")
    bad = np.full_like(IMAGES, np.inf)
    with pytest.raises(DataError, match="not finite"):
        train_stage(
            new_model("published"),
            ResponseEpisodes([(bad, IMAGES[:, :3])]),
            "extend",
            **QUICK,
            validation=validation_episodes(SyntheticEpisodes(IMAGES), (10,)),
        )


def test_bf16_trains_to_about_the_same_loss():
    source = SyntheticEpisodes(IMAGES, ceiling=(0.5, 0.9))
    settings = {**QUICK, "max_steps": 40, "evaluate_every": 20}
    a = train_stage(new_model(), source, "extend", **settings)
    b = train_stage(new_model(), source, "extend", precision="bf16", **settings)
    assert a.best_loss == pytest.approx(b.best_loss, rel=0.05)
    assert a.best_loss != b.best_loss


def test_accelerate_gives_the_same_weights():
    accelerate = pytest.importorskip("accelerate")
    a, b = new_model(), new_model()
    train_stage(a, SyntheticEpisodes(IMAGES), "extend", **QUICK)
    train_stage(b, SyntheticEpisodes(IMAGES), "extend", **QUICK, accelerator=accelerate.Accelerator(cpu=True))
    assert states_equal(a, b)


def share_out(folder: str) -> None:
    """One of two processes; run by the test below."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2, accelerator.num_processes
    model = new_model()
    found = train_stage(model, SyntheticEpisodes(IMAGES), "extend", **QUICK, accelerator=accelerator)
    if accelerator.is_main_process:
        torch.save({"state": model.state_dict(), "loss": found.best_loss}, Path(folder) / "two.pt")


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_episodes(tmp_path):
    pytest.importorskip("accelerate")
    script = tmp_path / "run.py"
    here = str(Path(__file__).parent)
    script.write_text(
        f"import sys\nsys.path.insert(0, {here!r})\nimport test_training\ntest_training.share_out({str(tmp_path)!r})\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, str(script)], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    source = _Twice(SyntheticEpisodes(IMAGES), 0)
    model = new_model()
    train_stage(
        model,
        source,
        "extend",
        **QUICK,
        episodes=2,
        validation=validation_episodes(SyntheticEpisodes(IMAGES), [10, 20, 40], query=20, seed=1),
    )
    for name, value in two["state"].items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-4, atol=1e-5)


class _Twice:
    """In one process, the episodes that two processes drew one each."""

    def __init__(self, source, seed):
        self.source, self.n_features, self.seed, self.calls = source, source.n_features, seed, 0

    def draw(self, rng, n_voxels, support, query):
        step, rank = divmod(self.calls, 2)
        self.calls += 1
        return self.source.draw(np.random.default_rng([self.seed, step, rank, 0]), n_voxels, support, query)


def test_episode_is_labelled_by_position():
    assert Episode._fields == ("x", "y", "xq", "yq", "weights", "group")


def test_nuisances_spoil_the_support_and_leave_queries_of_its_end():
    images = np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)
    source = SyntheticEpisodes(
        images,
        ceiling=(0.9, 0.9),
        isotropic_share=0.0,
        offset=0.0,
        nuisances=Nuisances(turning=np.pi / 2, outlying_trials=0.1, missing=0.1),
    )
    episode = source.draw(np.random.default_rng(1), 8, 120, 200)
    W, b = episode.weights[:, :-1], episode.weights[:, -1:]
    late = episode.yq - (W @ episode.xq.T + b)
    assert late.var() == pytest.approx(0.1, rel=0.2)  # weights are those at the end
    early = (episode.y - (W @ episode.x.T + b))[:, :30].numpy()
    assert np.nanvar(early) > 0.5  # and not those at the beginning
    assert episode.y.isnan().float().mean() == pytest.approx(0.1, abs=0.04)
    assert not episode.yq.isnan().any()
    assert source.digest() != SyntheticEpisodes(images, ceiling=(0.9, 0.9), isotropic_share=0.0, offset=0.0).digest()


@pytest.mark.parametrize("hint", ["weights", "nearest", "statistics"])
def test_hints_are_learned_beside_the_loss_and_left_out_in_use(tmp_path, hint):
    model = make_model("small", n_features=6, form="published", hint=hint, **SMALL)
    source = SyntheticEpisodes(IMAGES)
    episode = source.draw(np.random.default_rng(5), 40, 60, 30)

    def missed():
        model.train()
        with torch.no_grad():
            return float(hint_error(hint, model(episode.x, episode.y).hint, episode))

    before = missed()
    done = train_stage(
        model, source, "extend", support=(40, 60), voxels=16, query=20, max_steps=80, evaluate_every=40, lr=5e-3
    )
    assert missed() < 0.9 * before
    again = load_model(save_model(model.eval(), tmp_path / "model"))
    with torch.no_grad():
        found = again(episode.x, episode.y)
        assert found.hint is None
        assert torch.equal(found.coef, model(episode.x, episode.y).coef)
    # What training reports and keeps is judged without the hint.
    held = validation_episodes(source, (40, 50, 60), query=20, seed=1)
    with torch.no_grad():
        again_loss = np.mean([float((again(e.x, e.y).predict(e.xq) - e.yq).square().mean()) for e in held])
    assert done.best_loss == pytest.approx(again_loss, rel=1e-5)


def test_the_ridge_hint_is_ridge():
    rng = np.random.default_rng(0)
    x, y, xq = rng.standard_normal((30, 4)), rng.standard_normal((3, 30)), rng.standard_normal((7, 4))
    wide = np.column_stack([x, np.ones(30)])
    right = np.linalg.solve(wide.T @ wide + np.eye(5), wide.T @ y.T).T
    episode = Episode(*(torch.as_tensor(a, dtype=torch.float32) for a in (x, y, xq, rng.standard_normal((3, 7)))))
    assert float(hint_error("weights", torch.as_tensor(right, dtype=torch.float32), episode)) < 1e-9
    with pytest.raises(ConfigError, match="did you mean 'weights'"):
        make_model("small", n_features=6, hint="weight")
