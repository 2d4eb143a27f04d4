from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

from neuroenc._core.errors import DataError, NeuroencError
from neuroenc.data import (
    EncodingData,
    Stimuli,
    align,
    in_roi,
    make_features,
    make_responses,
    match,
    roi_names,
    split_by_stimulus,
    validate,
    validate_features,
    validate_responses,
    zscore,
)


def test_import_of_the_room_is_light():
    code = (
        "import sys, neuroenc.data as d; d.make_responses([[0.0]], stimulus=['a']); "
        "print([m for m in ('torch', 'open_clip', 'transformers', 'matplotlib', 'nilearn', 'nibabel', 'sklearn') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- responses


def test_responses_carry_every_label(responses):
    assert validate(responses) is responses
    assert responses.name == "responses"
    assert responses.dtype == np.float32
    for name in ("presentation", "session", "run", "repeat", "voxel", "i", "j", "k", "vertex"):
        assert responses[name].dtype == np.int64, name
    for name in ("stimulus", "subject", "roi", "hemi"):
        assert responses[name].dtype.kind == "U", name
    assert responses.ncsnr.dtype == np.float32
    assert len(responses.attrs["affine"]) == 16
    assert responses.attrs["affine"][3] == 30.0
    assert "versions" in json.loads(responses.attrs["provenance"])


def test_repeats_are_counted_per_subject():
    r = make_responses(np.zeros((5, 1)), stimulus=["a", "b", "a", "a", "a"], subject=["x", "x", "x", "y", "x"])
    assert r.repeat.values.tolist() == [0, 0, 1, 0, 2]


def test_float32_values_are_not_copied():
    values = np.zeros((4, 3), dtype=np.float32)
    r = make_responses(values, stimulus=list("abcd"))
    assert np.shares_memory(r.values, values)
    assert np.shares_memory(make_features(values, stimulus=list("abcd")).values, values)


def test_dask_values_stay_lazy():
    da = pytest.importorskip("dask.array")
    lazy = da.zeros((4, 3), chunks=(2, 3), dtype="float64")
    r = make_responses(lazy, stimulus=list("abcd"))
    assert r.chunks == ((2, 2), (3,))
    assert r.dtype == np.float32
    validate(r)


def test_stimulus_form_keeps_one_subject_and_counts():
    r = make_responses(np.zeros((2, 1)), stimulus=["a", "b"], dim="stimulus", subject="s", n_repeats=[3, 1])
    assert r.subject.dims == ()
    assert r.n_repeats.values.tolist() == [3, 1]
    assert "repeat" not in r.coords
    validate(r)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stimulus": [1, 2, 3]}, r"must be text, found .*1.*int.*Next step: stimulus=\[str\(x\)"),
        ({"stimulus": ["a", "b"]}, r"3 rows but 2 stimulus ids were given. The array seems to be \(voxel, sample\)"),
        ({"stimulus": ["a", "", "b"]}, "1 stimulus ids are empty, first at 1"),
        ({"dim": "trial"}, "unknown dim 'trial'.*presentation, stimulus"),
        ({"dim": "stimulus", "stimulus": ["a", "b", "a"]}, r"1 stimulus ids occur more than once, first \['a'\]"),
        ({"voxel": [4, 4]}, r"1 voxel ids occur more than once, first \[4\]"),
        ({"session": [1, 2]}, r"session has shape \(2,\) \(expected \(3,\): one value per presentation"),
        ({"run": [1.5, 2, 3]}, r"run must be whole numbers, found \[1.5\]"),
        ({"ijk": [[0, 0, 0], [0, 0, 1]]}, "without affine and volume_shape"),
        ({"ijk": [[0, 0, 0], [0, 0, 9]], "affine": np.eye(4), "volume_shape": (2, 2, 2)}, r"\[0, 0, 9\], outside"),
        ({"ijk": [0, 1], "affine": np.eye(4), "volume_shape": (2, 2, 2)}, r"ijk has shape \(2,\)"),
        ({"affine": np.eye(3)}, r"expected 16 numbers"),
        ({"vertex": [0, 1]}, "vertex and hemi belong together"),
        ({"vertex": [0, 1], "hemi": ["lh", "rh"]}, r"hemi holds \['lh', 'rh'\] \(legal: 'L', 'R'\)"),
        ({"roi": ["V1"]}, "roi has 1 entries"),
        ({"roi": [["V1;V2"], []]}, "roi name 'V1;V2' is not legal"),
        ({"roi": {"V1": np.array([1, 0])}}, "expected .*bool"),
        ({"zscored": "yes"}, "unknown zscored 'yes'"),
        ({"n_repeats": 2}, "n_repeats belongs to averaged responses"),
    ],
)
def test_builder_refuses(change, message):
    with pytest.raises(NeuroencError, match=message):
        make_responses(np.zeros((3, 2)), **{"stimulus": ["a", "b", "c"], **change})


def test_roi_forms_agree():
    as_text = make_responses(np.zeros((1, 3)), stimulus=["a"], roi=["V1", "V1;V2", ""])
    as_lists = make_responses(np.zeros((1, 3)), stimulus=["a"], roi=[["V1"], {"V2", "V1"}, []])
    as_masks = make_responses(
        np.zeros((1, 3)), stimulus=["a"], roi={"V1": np.array([1, 1, 0], bool), "V2": np.array([0, 1, 0], bool)}
    )
    assert as_text.roi.values.tolist() == as_lists.roi.values.tolist() == as_masks.roi.values.tolist()


def test_in_roi_is_exact_not_a_substring():
    r = make_responses(np.zeros((1, 4)), stimulus=["a"], roi=["V1", "V1d;V2", "V2;V1", ""])
    assert in_roi(r, "V1").tolist() == [True, False, True, False]
    assert roi_names(r) == ["V1", "V1d", "V2"]
    scores = xr.Dataset({"r": ("voxel", np.zeros(4))}, coords={"roi": r.roi})
    assert in_roi(scores, "V2").tolist() == [False, True, True, False]
    with pytest.raises(DataError, match=r"unknown roi 'V1D'; did you mean 'V1d'.*Legal: V1, V1d, V2"):
        in_roi(r, "V1D")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda r: r.values, "responses are ndarray"),
        (lambda r: r.T, r"dims \('voxel', 'presentation'\) and shape \(7, 60\).*transpose"),
        (lambda r: r.rename(presentation="trial"), r"dims \('trial', 'voxel'\)"),
        (lambda r: r.astype("float64"), "float64 .expected float32"),
        (lambda r: r.drop_vars("stimulus"), "no 'stimulus' coordinate"),
        (lambda r: r.assign_coords(voxel=[0, 10, 20, 30, 40, 50, 0]), r"1 voxel ids occur more than once, first \[0\]"),
        (
            lambda r: r.assign_coords(stimulus=("presentation", np.arange(60))),
            r"'stimulus' is int64, first value \[0\]",
        ),
        (lambda r: r.assign_coords(session=r.session.astype(float)), "'session' is float64 .expected int64"),
        (lambda r: r.assign_coords(session=("voxel", np.arange(7))), r"'session' has dims \('voxel',\)"),
        (lambda r: r.drop_vars("k"), r"coordinates \['i', 'j'\] only"),
        (lambda r: r.assign_attrs(affine=[1.0, 2.0]), r"affine has shape \(2,\) \(expected 16"),
        (lambda r: r.assign_attrs(volume_shape=[2, 2]), r"volume_shape is \[2, 2\]"),
        (lambda r: r.assign_attrs(volume_shape=[1, 2, 2]), "outside a volume"),
        (lambda r: r.assign_attrs(zscored="maybe"), "attribute zscored is 'maybe'"),
        (lambda r: r.set_index(presentation=["session", "repeat"]), r"MultiIndex .*reset_index\('presentation'\)"),
    ],
)
def test_validate_refuses(responses, break_it, message):
    with pytest.raises(DataError, match=message):
        validate_responses(break_it(responses))


def test_nan_voxels_are_counted_and_named(responses):
    responses[3, 4] = np.nan
    responses[:, 0] = np.nan
    with pytest.raises(DataError) as error:
        validate_responses(responses)
    text = str(error.value)
    assert "2 of 7 voxels have NaN values (61 values, 1 voxels throughout)" in text
    assert "first voxel ids [0, 40], in ROIs ['FFA', 'V1']" in text
    assert "Next step:" in text
    assert validate_responses(responses, allow_nan=True) is responses
    validate_responses(responses.dropna("voxel"))
    responses[5, 1] = -np.inf
    with pytest.raises(DataError, match=r"1 of 7 voxels have infinite values .*\[10\]"):
        validate_responses(responses, allow_nan=True)


def test_large_values_are_not_taken_for_nan():
    r = make_responses(np.full((2, 3), 3e38, np.float32), stimulus=["a", "b"])
    validate_responses(r)


def test_raw_responses_are_not_zscored(responses):
    with pytest.raises(DataError) as error:
        validate_responses(responses, zscored="session")
    text = str(error.value)
    assert "not z-scored within session" in text
    assert "in 3 of 3 groups" in text
    assert "neuroenc.data.zscore(responses, by='session')" in text
    low = min(responses.values[n * 20 : n * 20 + 20].std(0).min() for n in range(3))
    assert f"{low:.3g}" in text


def test_declared_but_not_done_is_an_error(responses):
    with pytest.raises(DataError, match="although the attributes declare zscored='session'"):
        validate_responses(responses.assign_attrs(zscored="session"))


def test_zscored_over_all_sessions_is_not_enough(responses):
    whole = ((responses - responses.mean("presentation")) / responses.std("presentation")).astype("float32")
    whole.attrs = responses.attrs
    with pytest.raises(DataError, match="not z-scored within session"):
        validate_responses(whole, zscored="session")


def test_zscored_responses_pass_and_so_do_their_parts(responses):
    by_session, by_run = zscore(responses), zscore(responses, by="run")
    validate_responses(by_session, zscored="session")
    validate_responses(by_run, zscored="run")
    validate_responses(by_run, zscored="session")
    with pytest.raises(DataError, match="not z-scored within run"):
        validate_responses(by_session, zscored="run")
    for part in split_by_stimulus(by_session, test=0.4, seed=1):
        validate_responses(part, zscored="session")
    undeclared = by_session.assign_attrs(zscored="none")
    validate_responses(undeclared, zscored="session")
    with pytest.raises(DataError, match="if these are part of a z-scored set, declare it"):
        validate_responses(undeclared[:35], zscored="session")


def test_ddof_1_counts_as_zscored(responses):
    validate_responses(zscore(responses, ddof=1), zscored="session")


def test_averaged_responses_cannot_be_zscored_afterwards():
    r = make_responses(np.eye(3), stimulus=list("abc"), dim="stimulus")
    with pytest.raises(DataError, match=r"averaged over repeats and declare zscored='none'.*average_repeats"):
        validate_responses(r, zscored="session")


def test_missing_session_is_named():
    r = make_responses(np.eye(3), stimulus=list("abc"))
    with pytest.raises(DataError, match=r"no 'session' coordinate.*assign_coords"):
        validate_responses(r, zscored="session")


# ---------------------------------------------------------------- features


def test_features_of_each_shape():
    assert make_features(np.zeros((2, 3)), stimulus=["a", "b"]).dims == ("stimulus", "feature")
    assert make_features(np.zeros((2, 3, 4)), stimulus=["a", "b"]).dims == ("stimulus", "token", "feature")
    maps = make_features(np.zeros((2, 3, 4, 5)), stimulus=["a", "b"], channel=["x", "y", "z"])
    assert maps.dims == ("stimulus", "channel", "y", "x")
    assert maps.channel.values.tolist() == ["x", "y", "z"]
    for x in (maps, make_features(np.zeros((2, 3)), stimulus=["a", "b"])):
        assert validate(x) is x
    with pytest.raises(DataError, match=r"shape \(2,\); legal are \(stimulus, feature\)"):
        make_features(np.zeros(2), stimulus=["a", "b"])


def test_content_hash_changes_with_values_ids_and_order_only():
    values = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)

    def content(v, ids, **k):
        return make_features(v, stimulus=ids, **k).attrs["content_hash"]

    base = content(values, ["a", "b", "c"])
    assert base == content(np.asfortranarray(values), ["a", "b", "c"], backbone="other")
    assert base != content(values, ["a", "b", "d"])
    assert base != content(values[::-1], ["a", "b", "c"])
    assert base != content(values + np.float32(1e-6), ["a", "b", "c"])


def test_unit_norm_is_checked_along_the_feature_axis():
    values = np.random.default_rng(0).standard_normal((4, 3, 2, 2))
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    validate_features(make_features(unit, stimulus=list("abcd"), normalised=True))
    with pytest.raises(DataError, match=r"not unit norm: norms range .* declared normalised"):
        validate_features(make_features(values, stimulus=list("abcd"), normalised=True))
    with pytest.raises(DataError, match="2 of 3 stimuli have NaN or infinite features"):
        validate_features(make_features([[1.0], [np.nan], [np.inf]], stimulus=list("abc")))


def test_align_names_the_first_mismatch_and_never_reorders():
    x = make_features(np.arange(4.0)[:, None], stimulus=list("abcd"))
    y = make_responses(np.zeros((4, 1)), stimulus=list("abdc"))
    with pytest.raises(DataError) as error:
        align(x, y)
    assert "2 of 4 rows differ, first row 2: features 'c', responses 'd'" in str(error.value)
    assert "neuroenc.data.match" in str(error.value)
    matched = match(x, y)
    assert align(matched, y)[0] is matched
    assert matched.values.ravel().tolist() == [0, 1, 3, 2]
    with pytest.raises(DataError, match="features have 4 rows, responses have 2"):
        align(x, y[:2])


def test_match_lists_missing_and_doubled_ids():
    x = make_features(np.arange(2.0)[:, None], stimulus=["a", "b"])
    y = make_responses(np.zeros((4, 1)), stimulus=["a", "zz", "b", "zz"])
    with pytest.raises(DataError, match=r"1 of 3 stimuli of the responses have no features, first \['zz'\]"):
        match(x, y)
    with pytest.raises(DataError, match=r"1 stimuli more than once, first \['a'\]"):
        match(x.isel(stimulus=[0, 0, 1]), y)


# ---------------------------------------------------------------- stimuli


@pytest.fixture
def stimuli():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)
    table = pd.DataFrame({"family": ["face", "food", "word"]}, index=["a", "b", "c"])
    return Stimuli(["a", "b", "c"], images, [["one"], ["two", "too"], []], table, "test", "CC0-1.0")


def test_selection_keeps_the_parts_together(stimuli):
    part = stimuli.sel(["c", "a"])
    assert part.ids.tolist() == ["c", "a"]
    assert np.array_equal(part.images, stimuli.images[[2, 0]])
    assert part.captions == ((), ("one",))
    assert part.table.family.tolist() == ["word", "face"]
    assert part.table.index.tolist() == ["c", "a"]
    assert part.licence == "CC0-1.0"
    assert validate(part) is part


def test_files_and_arrays_are_the_same_stimuli(stimuli, tmp_path):
    paths = []
    for n, name in enumerate(stimuli.ids):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(stimuli.images[n]).save(paths[-1])
    files = Stimuli(stimuli.ids, [str(p) for p in paths])
    assert files.content_hash() == stimuli.content_hash()
    assert np.array_equal(np.asarray(files.image("b")), stimuli.images[1])
    batches = list(files.iter_images(2))
    assert [len(b) for b in batches] == [2, 1]
    assert np.array_equal(np.asarray(batches[1][0]), stimuli.images[2])
    assert files.sel(["b"]).content_hash() == stimuli.sel(["b"]).content_hash() != files.content_hash()
    changed = stimuli.images.copy()
    changed[2, 4, 5, 2] ^= 1
    assert Stimuli(stimuli.ids, changed).content_hash() != stimuli.content_hash()


def test_grey_and_transparent_files_become_rgb(tmp_path):
    Image.new("LA", (4, 2), (7, 255)).save(tmp_path / "grey.png")
    image = Stimuli(["g"], [tmp_path / "grey.png"]).image(0)
    assert image.mode == "RGB"
    assert np.asarray(image).tolist() == np.full((2, 4, 3), 7).tolist()


def test_damaged_and_missing_files_are_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    stimuli = Stimuli(["bad", "gone"], [tmp_path / "bad.png", tmp_path / "gone.png"])
    with pytest.raises(DataError, match=r"stimulus 'bad' cannot be read: .*bad.png \(12 bytes\)"):
        stimuli.image(0)
    with pytest.raises(DataError, match=r"stimulus 'gone' .*does not exist"):
        stimuli.image("gone")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["a", "a", "b"]}, r"1 stimulus ids occur more than once, first \['a'\]"),
        ({"ids": [0, 1, 2]}, "must be text"),
        ({"images": np.zeros((3, 4, 4, 3))}, "dtype float64 .expected uint8"),
        ({"images": np.zeros((3, 3, 4, 4), np.uint8)}, "channels last"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "2 images for 3 stimuli"),
        ({"images": ["a.png"]}, "1 images for 3 stimuli"),
        ({"captions": ["one", "two", "three"]}, "captions of stimulus 'a' are not a list of texts"),
        ({"captions": [["one"]]}, "1 caption entries for 3 stimuli"),
        ({"table": pd.DataFrame({"x": [1, 2, 3]})}, r"index \['0', '1', '2'\].*set_index"),
    ],
)
def test_stimuli_refuse(change, message):
    with pytest.raises(DataError, match=message):
        Stimuli(**{"ids": ["a", "b", "c"], **change})


def test_unknown_stimulus_names_the_nearest(stimuli):
    with pytest.raises(DataError, match="unknown stimulus 'B'; did you mean 'b'"):
        stimuli.sel(["a", "B"])


def test_encoding_data_needs_a_stimulus_for_every_response(stimuli):
    good = make_responses(np.zeros((2, 1)), stimulus=["a", "c"])
    validate(EncodingData(good, stimuli))
    with pytest.raises(DataError, match="unknown stimulus 'd'"):
        validate(EncodingData(make_responses(np.zeros((1, 1)), stimulus=["d"]), stimuli))
    with pytest.raises(DataError, match="cannot validate dict"):
        validate({})


def test_values_beyond_float32_are_refused_and_not_made_infinite():
    with pytest.raises(DataError, match="1e\\+39"):
        make_responses([[1e39, 1.0]], stimulus=["a"])
    with pytest.raises(DataError, match="lengths"):
        make_features([[1.0], [1.0, 2.0]], stimulus=["a", "b"])
