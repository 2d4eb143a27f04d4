"""Trunks of many tasks: conditioning on subject and region, with planted conflict; shapes, labels, storage, refusals.

Margins fixed before looking: the shared trunk is at least 0.05 in R2 below separate models, the conditioned one gets
back at least 80 % of what it lost, gates put at least 0.7 of the two own spaces on the planted one, and with shuffled
regions less than 20 % comes back. R2 is against the noiseless signal of held-out stimuli.
"""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

from neuroenc import stats
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data.simulate import simulate_task_population
from neuroenc.encoders import ReadoutEncoder
from neuroenc.encoders.readout import search_widths
from neuroenc.encoders.readout.cores import TrunkCore, make_core

CONDITIONED = {"width": 6, "conditioning": "affine+gate"}
TRAINING = {"lr": 0.01, "batch_size": 50, "max_epochs": 100, "patience": 10}
N = 400


def small(n_subjects=2, **options):
    """A quick fit on two regions of some subjects, labelled."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((80, 6, 1, 1)) + 0.3 * rng.standard_normal((80, 6, 3, 3))
    maps = xr.DataArray(values.astype(np.float32), dims=("stimulus", "channel", "y", "x"))
    maps = maps.assign_coords(stimulus=np.arange(80), space=("channel", list("aabbbb")))
    Y = maps.values[:, :4, 1, 1] @ rng.standard_normal((4, 4 * n_subjects)) + rng.standard_normal((80, 4 * n_subjects))
    voxels = {"subject": ("voxel", np.repeat([f"s{k}" for k in range(n_subjects)], 4))}
    voxels |= {"roi": ("voxel", ["V1", "FFA", "V1", "FFA"] * n_subjects), "voxel": np.arange(4 * n_subjects)}
    Y = xr.DataArray(Y.astype(np.float32), dims=("stimulus", "voxel"), coords={"stimulus": maps.stimulus, **voxels})
    settings = {"readout": "pooled", "core": "trunk", "core_options": {"width": 4, "conditioning": "affine+gate"}}
    return (
        ReadoutEncoder(**{**settings, "max_epochs": 3, "lr": 0.01, "regions": "roi", **options}).fit(maps, Y),
        maps,
        Y,
    )


def accuracy(population, options, voxels=slice(None), roi=None, **more):
    """Fitted encoder, and mean R2 with the noiseless signal."""
    responses = population.responses[:, voxels]
    if roi is not None:
        responses = responses.assign_coords(roi=("voxel", roi))
    settings = {"core_options": options, "regions": "roi", **TRAINING, **more}
    encoder = ReadoutEncoder("pooled", core="trunk", **settings).fit(population.maps[:N], responses[:N])
    signal = population.truth["signal"].values[N:, voxels]
    return encoder, float(stats.score(signal, np.asarray(encoder.predict(population.maps[N:])), "r2").mean())


@pytest.fixture(scope="module")
def conflict():
    return simulate_task_population("conflict", n_stimuli=1200, seed=0)


@pytest.fixture(scope="module")
def conditioned(conflict):
    return accuracy(conflict, CONDITIONED)


@pytest.fixture(scope="module")
def bounds(conflict):
    """Mean R2 of one trunk for both regions, and of a trunk for each, all of one width."""
    roi, plain = conflict.responses["roi"].values, {"width": 6}
    alone = [accuracy(conflict, plain, np.flatnonzero(roi == name))[1] for name in "AB"]
    return accuracy(conflict, plain)[1], float(np.mean(alone))


@pytest.mark.slow
def test_a_conditioned_trunk_gets_back_what_conflict_costs(bounds, conditioned):
    shared, separate = bounds
    assert shared <= separate - 0.05
    assert conditioned[1] >= shared + 0.8 * (separate - shared), (bounds, conditioned[1])


@pytest.mark.slow
def test_gates_find_the_planted_space(conditioned):
    gates = conditioned[0].gates.sel(subject="s1")
    assert gates.dims == ("roi", "space")
    for own, other in (("A", "B"), ("B", "A")):
        mine, theirs = (float(gates.sel(roi=own, space=f"own {name}")) for name in (own, other))
        assert mine >= 0.7 * (mine + theirs), gates.values


@pytest.mark.slow
def test_shuffled_regions_lose_it(conflict, bounds):
    roi = np.random.default_rng(0).permutation(conflict.responses["roi"].values)
    shared, separate = bounds
    assert accuracy(conflict, CONDITIONED, roi=roi)[1] < shared + 0.2 * (separate - shared)


def test_tasks_gates_and_predictions_are_labelled_and_stored(tmp_path):
    encoder, maps, Y = small()
    assert encoder.tasks_[1] == {"subject": "s0", "roi": "V1"}
    gates = encoder.gates
    assert gates.dims == ("subject", "roi", "space")
    assert gates.space.values.tolist() == ["a", "b"]
    assert ((gates > 0) & (gates < 1)).all()
    predicted = encoder.predict(maps)
    assert predicted.roi.values.tolist() == Y.roi.values.tolist()
    again = ReadoutEncoder.load(encoder.save(tmp_path / "encoder"))
    np.testing.assert_array_equal(predicted.values, again.predict(maps).values)
    xr.testing.assert_equal(gates, again.gates)


def test_a_task_has_maps_of_its_own_and_the_shared_trunk_has_not():
    x = torch.randn(3, 6, 2, 2)
    tasks = [{"subject": "a"}, {"subject": "b"}]
    own = make_core("trunk", (6, 2, 2), tasks=tasks, width=4, conditioning="affine+gate", squeeze=True)
    assert not torch.equal(own(x, 0), own(x, 1))
    shared = make_core("trunk", (6, 2, 2), tasks=tasks, width=4)
    assert torch.equal(shared(x, 0), shared(x, 1))
    # Places are read alike, so that moving the stimulus moves the map.
    assert torch.allclose(shared(x.flip(3)).flip(3), shared(x), atol=1e-6)


@pytest.fixture(scope="module")
def scaled():
    """Mean R2 of three subjects of response s.d. 1, 3 and 10, trained together without and with balance."""
    population = simulate_task_population("scale", n_voxels=20, n_stimuli=1000, seed=1)
    subject = population.responses["subject"].values
    found = []
    for how in ({}, {"balanced": True, "sampling": "equal"}):
        encoder, _ = accuracy(population, {"width": 6}, regions=None, **how)
        predicted = np.asarray(encoder.predict(population.maps[N:]))
        r2 = stats.score(population.truth["signal"].values[N:], predicted, "r2")
        found.append(np.array([r2[subject == name].mean() for name in ("s1", "s2", "s3")]))
    return found


@pytest.mark.slow
def test_balanced_training_serves_subjects_of_small_responses(scaled):
    joint, balanced = scaled
    assert (balanced[:2] >= joint[:2] + 0.1).all(), scaled
    assert balanced.mean() >= joint.mean() + 0.05, scaled


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="joint .703, balanced .616 (seed 0): the loudest subject pays")
def test_balanced_training_costs_the_loudest_subject_little(scaled):
    joint, balanced = scaled
    assert balanced[2] >= joint[2] - 0.05, scaled


@pytest.mark.slow
def test_gradients_of_conflicting_regions_oppose_and_of_shuffled_ones_less():
    population = simulate_task_population("conflict", n_voxels=20, n_stimuli=N, seed=1)
    roi, cosine = population.responses["roi"].values, []
    for labels in (roi, np.random.default_rng(0).permutation(roi)):
        responses = population.responses.assign_coords(roi=("voxel", labels))
        encoder = ReadoutEncoder("pooled", core="trunk", core_options={"width": 6}, regions="roi", lr=0.01)
        found = encoder.fit(population.maps, responses, fixed_epochs=10).gradient_conflict(population.maps, responses)
        assert found["task"].values.tolist() == ["s1/A", "s1/B"]
        cosine.append(float(found[0, 1]))
    assert cosine[0] < min(-0.5, cosine[1] - 0.3), cosine


def test_a_balanced_step_is_one_subjects_and_leaves_the_others_readouts():
    encoder = small(balanced=True, sampling={"s0": 1e-9, "s1": 1.0}, max_epochs=1)[0]
    untrained = small(max_epochs=1, lr=1e-12)[0]
    moved = [
        float((a.weight - b.weight).detach().abs().max())
        for a, b in zip(encoder.model_.each, untrained.model_.each, strict=True)
    ]
    assert max(moved[:2]) < 1e-6 < min(moved[2:])
    with pytest.raises(ConfigError, match="s9"):
        small(balanced=True, sampling={"s9": 1.0})
    with pytest.raises(ConfigError, match="more than 0"):
        small(balanced=True, sampling={"s0": 1.0})


@pytest.fixture(scope="module")
def bent():
    """Mean R2 of three subjects whose responses bend the same latents each in its own way, and shared parameters."""
    population = simulate_task_population("nonlinearity", n_voxels=20, n_stimuli=1200, seed=1)
    subject = population.responses["subject"].values
    mixed = population.responses.assign_coords(subject=("voxel", np.random.default_rng(0).permutation(subject)))
    settings = {"regions": None, "max_epochs": 50, "patience": 8}
    experts = {"width": 8, "conditioning": "experts"}
    found = {
        "dense": accuracy(population, {"width": 8}, **settings)[1],
        "experts": accuracy(population, experts, **settings)[1],
        "upcycled": accuracy(population, {**experts, "upcycle": 100}, **settings)[1],
        "shuffled": accuracy(dataclasses.replace(population, responses=mixed), experts, **settings)[1],
    }
    alone = [
        accuracy(population, {"width": 8}, np.flatnonzero(subject == s), **settings)[1] for s in ("s1", "s2", "s3")
    ]
    return found | {"separate": float(np.mean(alone))}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["experts", "upcycled"])
def test_experts_are_as_good_as_separate_trunks_and_better_than_one(bent, name):
    assert bent[name] >= bent["separate"] - 0.01, bent
    assert bent[name] >= bent["dense"] + 0.03, bent


@pytest.mark.slow
def test_experts_with_shuffled_routing_are_behind_those_with_the_right_one(bent):
    assert bent["shuffled"] <= bent["experts"] - 0.03, bent


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="one trunk .565, shuffled experts .611 (three networks still), experts .806")
def test_shuffled_routing_gains_nothing_over_one_trunk(bent):
    assert bent["shuffled"] < bent["dense"] + 0.03, bent


def test_experts_share_all_but_their_networks_and_are_one_while_upcycling():
    tasks = [{"subject": name} for name in "abc"]
    dense, experts, upcycled = (
        make_core("trunk", (6, 2, 2), tasks=tasks, width=4, **options)
        for options in ({}, {"conditioning": "experts"}, {"conditioning": "experts", "upcycle": 2})
    )
    own = sum(p.numel() for p in dense.networks.parameters())
    assert experts.n_parameters == dense.n_parameters + 2 * own
    x = torch.randn(3, 6, 2, 2)
    assert not torch.equal(experts(x, 0), experts(x, 1))
    for step in range(2):
        with torch.no_grad():
            upcycled.networks[0].up[0] += 1
        upcycled.constrain()
        assert torch.equal(upcycled(x, 0), upcycled(x, 2)), step
    with torch.no_grad():
        upcycled.networks[0].up[0] += 1
    assert not torch.equal(upcycled(x, 0), upcycled(x, 2))


@pytest.fixture(scope="module")
def slim():
    """Population, encoders with and without distillation, and one of the narrow width alone."""
    population = simulate_task_population("conflict", n_voxels=20, n_stimuli=1000, seed=1)
    settings = {"max_epochs": 40, "patience": 8}
    widths = {"width": 32, "widths": [4, 8, 16]}
    options = {"slim": widths, "without": {**widths, "distil": 0.0}, "alone": {"width": 8}}
    return population, {name: accuracy(population, o, **settings)[0] for name, o in options.items()}


def of_width(population, encoder, widths):
    predicted = np.asarray(encoder.predict(population.maps[N:], widths=widths))
    return stats.score(population.truth["signal"].values[N:], predicted, "r2")


@pytest.mark.slow
def test_slim_widths_gain_with_width_and_need_distillation(slim):
    population, encoders = slim
    curve = [of_width(population, encoders["slim"], w).mean() for w in (4, 8, 16, 32)]
    assert np.all(np.diff(curve) > 0), curve
    assert curve[1] >= of_width(population, encoders["without"], 8).mean() + 0.02


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="width 8 of 32: R2 .622, trained alone .713 (seed 0)")
def test_a_slim_width_is_as_good_as_a_trunk_of_its_own(slim):
    population, encoders = slim
    alone = stats.score(
        population.truth["signal"].values[N:], np.asarray(encoders["alone"].predict(population.maps[N:])), "r2"
    )
    assert of_width(population, encoders["slim"], 8).mean() >= alone.mean() - 0.01


@pytest.mark.slow
def test_preference_raises_its_region_at_constant_cost(slim):
    population, encoders = slim
    encoder, roi = encoders["slim"], population.responses["roi"].values
    table = encoder.width_table(population.maps[N:], population.responses[N:])
    assert set(table["group"]) == {"A", "B"}
    assert (table["seconds"] > 0).all()
    # Costs that do not depend on the machine: one unit a channel.
    table["seconds"] = table["width"].astype(float)
    r2 = {}
    for liked, other in (("A", "B"), ("B", "A")):
        widths = search_widths(table, preference={liked: 0.8, other: 0.2}, budget=40)
        assert sum(widths.values()) <= 40
        scores = of_width(population, encoder, widths)
        r2[liked] = {name: scores[roi == name].mean() for name in "AB"}
    assert r2["A"]["A"] > r2["B"]["A"] + 0.02
    assert r2["B"]["B"] > r2["A"]["B"] + 0.02


def test_widths_by_name_run_at_what_they_say_and_others_are_refused(tmp_path):
    encoder, maps, _ = small(core_options={"width": 6, "widths": [2, 3], "conditioning": "affine+gate"})
    encoder = copy.deepcopy(encoder)
    full, narrow = encoder.predict(maps), encoder.predict(maps, widths=2)
    mixed = encoder.predict(maps, widths={"V1": 2, "s1/V1": 3})
    at = dict(zip(["s0/FFA", "s0/V1", "s1/FFA", "s1/V1"], [full, narrow, full, encoder.predict(maps, widths=3)]))
    for name, expected in at.items():
        own = (full.subject == name[:2]) & (full.roi == name[3:])
        np.testing.assert_array_equal(mixed.values[:, own], expected.values[:, own])
    assert not np.allclose(full, narrow)
    with pytest.raises(ConfigError, match="not one of"):
        encoder.predict(maps, widths=4)
    with pytest.raises(ConfigError, match="V4"):
        encoder.predict(maps, widths={"V4": 2})
    with pytest.raises(ConfigError, match="one width"):
        small()[0].predict(maps, widths=4)
    with pytest.raises(ConfigError, match="cheapest"):
        search_widths(encoder.width_table(maps, small()[2]), preference={"V1": 1.0}, budget=0.0)


def added(Y, name="new"):
    """Responses of a new subject that resembles the first."""
    rng = np.random.default_rng(5)
    one = Y[:, :4].copy(data=(Y.values[:, :4] @ rng.standard_normal((4, 4))).astype(np.float32))
    return one.assign_coords(subject=("voxel", [name] * 4))


@pytest.mark.parametrize("readout", ["pooled", "factorized"])
@pytest.mark.parametrize("core", ["none", "affine+gate", "experts", "plain", None])
def test_a_new_subject_leaves_the_others_equal_to_the_bit(readout, core, tmp_path):
    options = {"readout": readout, "core": "trunk", "core_options": {"width": 4, "conditioning": core}}
    if core in ("plain", None):
        options |= {"core": core, "core_options": None, "solver": "gradient", "subjects": "subject"}
    encoder, maps, Y = small(**{"regions": "roi", **options})
    encoder.solver = "auto"
    before, weights = encoder.predict(maps), encoder.model_.core.state_dict() if core else {}
    weights = {name: value.clone() for name, value in weights.items()}
    start = {"s0": 3.0, "s1": 1.0} if core in ("affine+gate", "experts") else None
    extra = added(Y)
    encoder.add_subject(maps[:60], extra[:60], start)
    after = encoder.predict(maps)
    np.testing.assert_array_equal(after.values[:, :8], before.values)
    assert all(torch.equal(encoder.model_.core.state_dict()[name], value) for name, value in weights.items())
    assert after.subject.values.tolist() == [*before.subject.values, *["new"] * 4]
    assert after.roi.values.tolist() == [*Y.roi.values, *["V1", "FFA"] * 2]
    if core != "plain":
        r = stats.score(extra.values[60:], after.values[60:, 8:])
        assert r.mean() > (0.2 if readout == "pooled" else 0.0), r
    np.testing.assert_array_equal(ReadoutEncoder.load(encoder.save(tmp_path / "e")).predict(maps).values, after.values)
    with pytest.raises(ConfigError, match="knows subject 'new'"):
        encoder.add_subject(maps, extra)


def test_a_new_subject_begins_where_it_is_told_to():
    encoder, maps, Y = small()
    with pytest.raises(ConfigError, match="s7"):
        encoder.add_subject(maps, added(Y), "s7")
    with pytest.raises(DataError, match="labels"):
        encoder.add_subject(maps, added(Y).values)
    encoder.add_subject(maps, added(Y), "s1")
    gates = encoder.gates
    xr.testing.assert_equal(gates.sel(subject="new", drop=True), gates.sel(subject="s1", drop=True))
    assert not gates.sel(subject="s0", drop=True).equals(gates.sel(subject="s1", drop=True))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"conditioning": "gate"}, "affine"),
        ({"spaces": {"a": 2}}, "names 2 channels; the features have 6"),
        ({"conditioning": "experts", "experts": "scanner"}, "scanner"),
        ({"width": 0}, "width"),
        ({"widths": [2, 4]}, "between 1 and width=4"),
        ({"conditioning": "affine+gate", "frozen": True}, "frozen"),
    ],
)
def test_settings_without_meaning_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        small(core_options={"width": 4, **options})


def test_unknown_regions_and_gates_where_there_are_none_are_refused():
    with pytest.raises(ConfigError, match="area"):
        small(regions="area")
    with pytest.raises(ConfigError, match="gates"):
        small(core_options={"width": 4})[0].gates  # noqa: B018
    with pytest.raises(ConfigError, match="no gates"):
        TrunkCore((6, 1, 1)).gates()
