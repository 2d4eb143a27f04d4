"""The simulated cortex: what is planted can be found again, by independent means."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import average_repeats, match, zscore
from neuroenc.data._stimuli import Stimuli
from neuroenc.data._validate import validate_responses
from neuroenc.data.simulate import FAMILIES, MEMBERS, ROIS, simulate_cortex, simulate_world
from neuroenc.data.simulate._rois import CHANNELS, energy_maps, fsaverage5
from neuroenc.embedding import ImageEmbedder
from neuroenc.encoders import RidgeEncoder


@pytest.fixture(scope="module")
def world():
    return simulate_world(600, seed=21)


@pytest.fixture(scope="module")
def subject(world):
    return simulate_cortex(world, test_ids=world.ids[:200], test_repeats=3, own=0.0, seed=3)[0]


def _zscored(responses):
    y = responses.values.astype(np.float64)
    for s in np.unique(responses.session):
        rows = responses.session.values == s
        y[rows] = (y[rows] - y[rows].mean(axis=0)) / y[rows].std(axis=0)
    return y


def _repeats(responses, y, ids):
    """(stimulus, repeat, voxel)"""
    order = np.lexsort((responses.repeat.values, responses.stimulus.values))
    rows = order[np.isin(responses.stimulus.values[order], ids)]
    return y[rows].reshape(len(ids), -1, y.shape[1])


def test_responses_are_valid_and_labelled(subject, world):
    responses, truth = subject.responses, subject.truth
    validate_responses(responses)
    assert responses.dtype == np.float32
    assert responses.attrs["units"] == "% signal change"
    assert responses.attrs["zscored"] == "none"
    assert set(responses.roi.values) == set(ROIS)
    assert np.array_equal(responses.roi, truth.roi)
    assert np.array_equal(truth.stimulus.values, world.ids)
    assert set(truth.family.values[truth.family.values != ""]) == set(FAMILIES)
    assert not np.isfinite(truth.rf_x.values[truth.family.values != ""]).any()
    assert np.isfinite(truth.rf_x.values[truth.family.values == ""]).all()


def test_design(subject, world):
    responses = subject.responses
    ids, counts = np.unique(responses.stimulus.values, return_counts=True)
    assert dict(zip(ids, counts)) == {i: 3 if k < 200 else 1 for k, i in enumerate(world.ids)}
    per_session = np.unique(responses.session, return_counts=True)[1]
    assert len(per_session) == 4
    assert per_session.max() - per_session.min() <= 4
    assert np.array_equal(np.unique(responses.run), [1, 2, 3, 4])
    for i in world.ids[:200]:
        rows = responses.stimulus.values == i
        assert responses.repeat.values[rows].tolist() == [0, 1, 2]
        assert len(set(responses.session.values[rows])) == 3


def test_planted_ncsnr_is_what_nsds_estimator_finds(subject, world):
    trials = _repeats(subject.responses, _zscored(subject.responses), world.ids[:200])
    noise = trials.var(axis=1, ddof=1).mean(axis=0)
    estimate = np.sqrt(np.clip(1 - noise, 0, None) / noise)
    planted = subject.truth.ncsnr.values
    assert planted.min() >= 0.2
    assert planted.max() <= 1.5
    assert np.median(np.abs(estimate - planted)) < 0.08
    assert abs(np.median(estimate - planted)) < 0.04
    assert np.corrcoef(estimate, planted)[0, 1] > 0.93


def test_planted_ceiling_is_the_variance_that_the_signal_explains(subject, world):
    trials = _repeats(subject.responses, _zscored(subject.responses), world.ids[:200])
    mean = trials.mean(axis=1)
    mean = (mean - mean.mean(axis=0)) / mean.std(axis=0)
    order = np.argsort(world.ids[:200])
    signal = subject.truth.signal.values[:200][order]
    signal = (signal - signal.mean(axis=0)) / signal.std(axis=0)
    explained = (mean * signal).mean(axis=0) ** 2
    ceiling = subject.truth.noise_ceiling_r2.values
    assert subject.truth.noise_ceiling_r2.attrs["n_averaged"] == 3
    assert np.median(np.abs(explained - ceiling)) < 0.06
    assert np.corrcoef(explained, ceiling)[0, 1] > 0.9


def test_wrong_session_handling_misses_the_planted_ncsnr(subject, world):
    """Negative control: without z-scoring within session, gain and offset pass for noise."""
    y = subject.responses.values.astype(np.float64)
    y = (y - y.mean(axis=0)) / y.std(axis=0)
    noise = _repeats(subject.responses, y, world.ids[:200]).var(axis=1, ddof=1).mean(axis=0)
    estimate = np.sqrt(np.clip(1 - noise, 0, None) / noise)
    assert np.median(subject.truth.ncsnr.values - estimate) > 0.04


def test_sessions_have_the_planted_gain_and_offset(subject):
    responses, truth = subject.responses, subject.truth
    for s in truth.session.values:
        rows = responses.session.values == s
        error = responses.values[rows].mean(axis=0) - truth.session_offset.sel(session=s).values
        spread = truth.session_gain.sel(session=s).values * np.sqrt(1 + 1 / truth.ncsnr.values**2)
        assert np.abs(error / (spread / np.sqrt(rows.sum()))).mean() < 1.5
        assert np.corrcoef(responses.values[rows].std(axis=0), spread)[0, 1] > 0.97
    assert truth.session_offset.std("session").median() > 0.1
    assert (truth.session_gain.std("session") / truth.session_gain.mean("session")).median() > 0.05


def test_drift_is_slow(world):
    ids = world.ids[:4]
    options = {"n_voxels": {"FFA": 40}, "test_ids": ids, "n_sessions": 2, "runs_per_session": 2, "seed": 1}

    def residual_correlation(drift):
        data = simulate_cortex(world, drift=drift, **options)[0]
        r, t = data.responses, data.truth
        session = r.session.values - 1
        y = (r.values - t.session_offset.values[session]) / t.session_gain.values[session]
        y = (y - t.signal.sel(stimulus=r.stimulus.values).values) * t.ncsnr.values
        assert abs(y.var() - 1) < 0.05
        return (y[1:] * y[:-1]).mean()

    assert abs(residual_correlation(0.0)) < 0.02
    assert abs(residual_correlation(0.3) - 0.3) < 0.08


def test_receptive_fields_are_found_where_they_were_planted(subject, world):
    truth = subject.truth
    energy = energy_maps(world).mean(axis=0)
    centre = (np.arange(32) + 0.5) / 32 - 0.5
    y, x = (g.ravel() for g in np.meshgrid(-centre, centre, indexing="ij"))
    z = (energy - energy.mean(axis=0)) / energy.std(axis=0)
    for roi, limit in (("V1", 0.06), ("V2", 0.07), ("V3", 0.09), ("hV4", 0.12)):
        at = truth.roi.values == roi
        r = z.T @ truth.signal.values[:, at] / len(z)
        weight = np.clip(r - 0.8 * r.max(axis=0), 0, None)
        weight /= weight.sum(axis=0)
        error = np.hypot(x @ weight - truth.rf_x.values[at], y @ weight - truth.rf_y.values[at])
        assert np.median(error) < limit, (roi, np.median(error))


def test_retinotopy_is_contralateral_and_grows(subject):
    truth = subject.truth
    retinotopic = truth.family.values == ""
    x, hemi = truth.rf_x.values[retinotopic], truth.hemi.values[retinotopic]
    assert (x[hemi == "L"] >= 0).all()
    assert (x[hemi == "R"] <= 0).all()
    sizes = [np.median(truth.rf_size.values[truth.roi.values == r]) for r in ("V1", "V2", "V3", "hV4")]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 1.8 * sizes[0]
    v1 = truth.roi.values == "V1"
    eccentricity = np.hypot(truth.rf_x.values[v1], truth.rf_y.values[v1])
    assert np.corrcoef(eccentricity, truth.rf_size.values[v1])[0, 1] > 0.4


def test_energy_maps_find_orientation_and_do_not_depend_on_batches(world):
    n = 64
    y, x = np.mgrid[:n, :n] / n
    gratings = []
    for angle in (0, 45, 90, 135):
        a = np.deg2rad(angle)
        wave = 127 + 100 * np.sin(2 * np.pi * 6 * (x * np.cos(a) + y * np.sin(a)))
        gratings.append(np.repeat(wave[..., None], 3, axis=2))
    maps = energy_maps(Stimuli([f"g{k}" for k in range(4)], np.array(gratings).astype(np.uint8)))
    raw = maps.mean(axis=-1)[:4]
    assert np.array_equal(np.argmax(raw, axis=0), [0, 1, 2, 3])
    assert CHANNELS[0].startswith("gabor 0 deg")
    some = world.sel(world.ids[:20])
    np.testing.assert_allclose(energy_maps(some, batch_size=7), energy_maps(some, batch_size=64), rtol=1e-4, atol=1e-5)


def test_selective_voxels_prefer_their_family_and_members(subject, world):
    truth, table = subject.truth, world.table
    presence = {f: table[f].to_numpy() > 0 for f in FAMILIES}
    pure = (truth.family.values != "") & ~truth.mixed.values
    contrast = np.stack(
        [truth.signal.values[p].mean(axis=0) - truth.signal.values[~p].mean(axis=0) for p in presence.values()]
    )
    assert np.array_equal(np.array(FAMILIES)[contrast.argmax(axis=0)][pure], truth.family.values[pure])
    ffa = truth.roi.values == "FFA"
    assert contrast[FAMILIES.index("face"), ffa].min() > 1.0
    mixed = np.flatnonzero(truth.mixed.values)
    assert 0.05 < len(mixed) / (truth.family.values != "").sum() < 0.2
    for v in mixed:
        assert contrast[FAMILIES.index(truth.second_family.values[v]), v] > 0.4
    for v in np.flatnonzero(pure):
        family, liked = truth.family.values[v], truth.members.values[v].split(";")
        others = [m for m in MEMBERS[family] if m not in liked]

        def mean(members, v=v):
            return truth.signal.values[(table[[f"member_{m}" for m in members]] > 0).any(axis=1), v].mean()

        assert mean(liked) > mean(others)


def test_selective_signals_are_nearly_linear_in_what_is_shown(subject, world):
    shown = np.c_[world.table[[f"member_{m}" for f in FAMILIES for m in MEMBERS[f]]] > 0, np.ones(len(world))]
    truth = subject.truth
    half = np.arange(len(world)) % 2 == 0
    weights = np.linalg.lstsq(shown[half], truth.signal.values[half], rcond=None)[0]
    left = truth.signal.values[~half] - shown[~half] @ weights
    r2 = 1 - (left**2).mean(axis=0)
    selective = truth.family.values != ""
    assert np.sqrt(np.median(r2[selective])) > 0.93
    assert np.median(r2[~selective]) < 0.4


def test_places_on_the_surface_and_in_the_volume(subject):
    r = subject.responses
    assert r.vertex.values.min() >= 0
    assert r.vertex.values.max() < 10242
    places = set(zip(r.hemi.values.tolist(), r.vertex.values.tolist()))
    assert len(places) == r.sizes["voxel"]
    ijk = np.stack([r[c].values for c in "ijk"], axis=1)
    assert len({tuple(x) for x in ijk.tolist()}) == len(ijk)
    assert (ijk >= 0).all()
    assert (ijk < r.attrs["volume_shape"]).all()
    affine = np.array(r.attrs["affine"]).reshape(4, 4)
    mm = ijk @ affine[:3, :3].T + affine[:3, 3]
    mesh = fsaverage5()
    xyz = np.stack([mesh[h][0][v] for h, v in zip(r.hemi.values, r.vertex.values)])
    assert np.linalg.norm(mm - xyz, axis=1).max() <= 2.0
    assert set(r.hemi.values[r.roi.values == "VWFA"]) == {"L"}


def test_regions_are_contiguous_and_near_their_centres(subject):
    r = subject.responses
    mesh = fsaverage5()
    for name, roi in ROIS.items():
        for hemi in roi.hemispheres:
            xyz, neighbours = mesh[hemi]
            left = set(r.vertex.values[(r.roi.values == name) & (r.hemi.values == hemi)].tolist())
            n = len(left)
            pieces = []
            while left:
                stack, piece = [left.pop()], 1
                while stack:
                    near = left & set(neighbours[stack.pop()].tolist())
                    left -= near
                    stack.extend(near)
                    piece += len(near)
                pieces.append(piece)
            # A vertex can be lost where the volume has no free element left.
            assert sum(sorted(pieces)[-len(roi.centres) :]) >= 0.9 * n, (name, hemi, pieces)
            vertices = r.vertex.values[(r.roi.values == name) & (r.hemi.values == hemi)]
            sign = -1 if hemi == "L" else 1
            centre = np.mean([[sign * c[0], *c[1:]] for c in roi.centres], axis=0)
            assert np.linalg.norm(xyz[vertices].mean(axis=0) - centre) < 14


def test_same_seed_same_subject_and_subjects_differ(world):
    few = world.sel(world.ids[:60])
    options = {"n_voxels": 200, "n_sessions": 2, "seed": 7}
    alone = simulate_cortex(few, **options)[0]
    first, second = simulate_cortex(few, n_subjects=2, **options)
    assert np.array_equal(alone.responses.values, first.responses.values)
    assert alone.truth.identical(first.truth)
    assert set(second.responses.subject.values) == {"sub-02"}
    a, b = ({(h, int(v)) for h, v in zip(d.truth.hemi.values, d.truth.vertex.values)} for d in (first, second))
    assert 0.1 < len(a & b) / len(a | b) < 0.9
    n = min(first.truth.sizes["voxel"], second.truth.sizes["voxel"])
    assert np.abs(first.truth.ncsnr.values[:n] - second.truth.ncsnr.values[:n]).mean() > 0.05
    other = simulate_cortex(few, **{**options, "seed": 8})[0]
    assert other.responses.shape != alone.responses.shape or not np.array_equal(other.responses, alone.responses)


def likeness(coefs, places, rng):
    """Median cosine of a voxel's weights with the mean of ten of another subject's: the nearest, and random ones."""
    near, far = [], []
    for one, two in itertools.permutations(range(len(coefs)), 2):
        nearest = cKDTree(places[two]).query(places[one], 10)[1]
        for found, rows in ((near, nearest), (far, rng.integers(0, len(places[two]), nearest.shape))):
            means = coefs[two][:, rows].mean(axis=2)
            lengths = np.linalg.norm(coefs[one], axis=0) * np.linalg.norm(means, axis=0)
            found.append(np.median((coefs[one] * means).sum(axis=0) / lengths))
    return np.mean(near), np.mean(far)


@pytest.mark.slow
def test_subjects_are_as_alike_as_people():
    """Ridge weights: BOLD5000's have .18 to .28 with the ten nearest voxels, .06 to .12 with random ones."""
    scenes = simulate_world(1500, seed=5)
    X = ImageEmbedder("world", progress=False).embed(scenes)
    X = X - X.mean("stimulus")

    def found(**options):
        coefs, places = [], []
        for one in simulate_cortex(scenes, n_subjects=3, seed=3, **options):
            Y = average_repeats(zscore(one.responses, by="session"))
            coefs.append(RidgeEncoder(progress=False).fit(match(X, Y), Y).coef_)
            places.append(np.stack([fsaverage5()[h][0][v] for h, v in zip(Y.hemi.values, Y.vertex.values)]))
        return likeness(coefs, places, np.random.default_rng(0))

    near, far = found()
    assert 0.18 <= near <= 0.28
    assert 0.06 <= far <= 0.12
    near, far = found(own=0.0)
    assert near > 0.45
    assert far > 0.18


def test_people_whose_weights_were_published_are_as_alike():
    folder = Path(__file__).parents[3] / "shared" / "data" / "bold5000-weights"
    if not folder.is_dir():
        pytest.skip("the weights of BOLD5000's subjects are not here")
    people = [np.load(folder / f"sub-CSI{n}.npz") for n in (1, 2, 3)]
    near, far = likeness([p["coef"] for p in people], [p["mni"] for p in people], np.random.default_rng(0))
    assert 0.18 <= near <= 0.28
    assert 0.06 <= far <= 0.12


def test_directions_of_their_own_leave_what_was_planted(world):
    few = world.sel(world.ids[:300])
    options = {"n_voxels": {"V1": 20, "FFA": 20}, "n_sessions": 2}
    plain, mixed = (simulate_cortex(few, own=own, **options)[0].truth for own in (0.0, 0.6))
    assert plain.drop_vars("signal").equals(mixed.drop_vars("signal"))
    r = (plain["signal"] * mixed["signal"]).mean("stimulus")
    np.testing.assert_allclose(r.mean(), np.sqrt(0.4), atol=0.1)
    np.testing.assert_allclose(mixed["signal"].std("stimulus"), 1, atol=1e-3)


def test_unique_training_stimuli(world):
    few = world.sel(world.ids[:50])
    options = {"n_voxels": {"PPA": 12}, "test_ids": few.ids[:8], "n_subjects": 3}
    shown = [set(d.responses.stimulus.values) for d in simulate_cortex(few, unique=True, **options)]
    assert set.intersection(*shown) == set(few.ids[:8])
    assert set.union(*shown) == set(few.ids)
    assert sum(len(s) for s in shown) == 42 + 3 * 8
    same = [set(d.responses.stimulus.values) for d in simulate_cortex(few, **options)]
    assert same[0] == same[1] == same[2] == set(few.ids)


def test_voxel_counts(world):
    few = world.sel(world.ids[:30])
    data = simulate_cortex(few, n_voxels={"V1": 40, "food": 20}, n_sessions=2, individual=0.0)[0]
    names, counts = np.unique(data.responses.roi, return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist())) == {"V1": 40, "food": 20}
    assert abs(simulate_cortex(few, n_voxels=3000, n_sessions=2)[0].responses.sizes["voxel"] - 3000) < 250


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_voxels": {"FFB": 10}}, "did you mean 'FFA'"),
        ({"n_voxels": 0}, "no voxels"),
        ({"n_sessions": 0}, "n_sessions=0"),
        ({"ncsnr": (0.5, 0.1)}, "low first"),
        ({"drift": 1.0}, r"drift=1.0 must be in \[0, 1\)"),
        ({"n_subjects": 40, "unique": True}, "cannot be dealt"),
    ],
)
def test_illegal_settings(world, arguments, message):
    with pytest.raises(ConfigError, match=message):
        simulate_cortex(world.sel(world.ids[:10]), **arguments)


def test_stimuli_from_elsewhere_are_refused(world):
    photographs = Stimuli(["a", "b"], np.zeros((2, 64, 64, 3), np.uint8), source="photographs")
    with pytest.raises(DataError, match=r"'photographs'.*simulate_world"):
        simulate_cortex(photographs)
    with pytest.raises(DataError, match="unknown stimulus"):
        simulate_cortex(world.sel(world.ids[:10]), test_ids=["nowhere"])
    with pytest.raises(DataError, match="Next step"):
        simulate_cortex(world.sel(world.ids[:10]), n_voxels=40000, n_sessions=1)
