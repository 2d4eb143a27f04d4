import json
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict

from neuroenc._util.errors import ChecksumError, ConfigError
from neuroenc.data import load_dataset, validate_responses
from neuroenc.data.loaders._v4 import SESSIONS


def load(mirror, session):
    return load_dataset("v4-cowley2023", mirror=mirror, session=session)


def simple_features(images):
    """Local contrast and colour on a 4 x 4 grid: knows nothing of networks, enough to tell order from disorder."""
    grey = images.mean(-1) / 255.0

    def pool(a):
        return a[:, :104, :104].reshape(len(a), 4, 26, 4, 26).mean((2, 4)).reshape(len(a), -1)

    maps = [np.abs(np.diff(grey, axis=2))[:, :111], np.abs(np.diff(grey, axis=1))[:, :, :111]]
    x = np.concatenate([pool(a) for a in (*maps, *(images[..., c] / 255.0 for c in range(3)))], axis=1)
    return (x - x.mean(0)) / x.std(0)


def median_r(x, y):
    folds = KFold(4, shuffle=True, random_state=0)
    p = cross_val_predict(RidgeCV(np.logspace(0, 4, 5)), x, y, cv=folds)
    return np.median([np.corrcoef(p[:, v], y[:, v])[0, 1] for v in range(y.shape[1])])


@pytest.mark.parametrize("session", list(SESSIONS))
def test_every_session_has_images_in_the_order_of_its_responses(mirror, session):
    info = SESSIONS[session]
    data = load(mirror, session)
    y, stimuli = data.responses, data.stimuli
    assert y.shape == (info.n_images, info.n_neurons)
    assert stimuli.images.shape == (info.n_images, 112, 112, 3)
    assert stimuli.images.dtype == np.uint8
    assert y["stimulus"].values.tolist() == stimuli.ids.tolist() == sorted(stimuli.ids)
    assert str(y["subject"].item()) == f"{info.animal}-{session}"
    assert y.attrs["units"] == "spike count"
    assert y.attrs["licence"] == "GPL-3.0"
    validate_responses(y)
    # Simple image statistics predict the neurons in this order (0.28 to 0.50), and not with the images permuted.
    x = simple_features(stimuli.images)
    assert median_r(x, y.values) > 0.25
    shuffled = np.random.default_rng(0).permutation(len(x))
    assert abs(median_r(x[shuffled], y.values)) < 0.08


def test_stored_order_of_190925_is_a_trap_and_is_not_used(mirror):
    data = load(mirror, "190925")
    with zipfile.ZipFile(mirror / "v4-cowley2023" / "images" / "images_190925.zip") as archive:
        stored = [PurePosixPath(n).stem for n in archive.namelist()]
        with archive.open(f"{stored[0]}.jpg") as handle:
            first = np.asarray(Image.open(handle).convert("RGB"))
    assert stored != sorted(stored)
    assert np.array_equal(data.stimuli.images[data.stimuli.index_of(f"190925-{stored[0]}")[0]], first)
    as_stored = [int(np.flatnonzero(data.stimuli.ids == f"190925-{s}")[0]) for s in stored]
    x = simple_features(data.stimuli.images)
    assert abs(median_r(x[as_stored], data.responses.values)) < 0.1 < 0.4 < median_r(x, data.responses.values)


def test_folder_inside_the_zip_of_190923(mirror):
    ids = load(mirror, "190923").stimuli.ids
    assert ids[0] == "190923-image0001"
    assert ids[-1] == "190923-image1200"


def test_raw_repeats_average_to_the_responses(mirror):
    data = load(mirror, "210325")
    repeats = data.extra["repeats"]
    validate_responses(repeats)
    assert not np.isnan(repeats.values).any()
    counts = data.responses["n_repeats"].values
    assert repeats.sizes["presentation"] == counts.sum() == 6400 - 78000 // 50
    assert (counts.min(), counts.max()) == (6, 10)
    mean = repeats.groupby("stimulus").mean().sel(stimulus=data.stimuli.ids)
    np.testing.assert_allclose(mean.transpose("stimulus", "voxel").values, data.responses.values, atol=1e-5)
    assert repeats["repeat"].values[:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert np.unique(repeats["session"].values).tolist() == [210325]
    assert "repeats" not in load(mirror, "201025").extra


def test_ids_are_unique_over_sessions(mirror):
    a, b = (load(mirror, s).stimuli.ids for s in ("190927", "210224"))
    assert not set(a) & set(b)


def test_provenance_names_files_and_options(mirror):
    attrs = load(mirror, 210224).responses.attrs
    record = json.loads(attrs["provenance"])
    assert "210224" in attrs["provenance"]
    assert "images/images_210224.zip" in json.dumps(record)


def test_unknown_session_and_option(mirror):
    with pytest.raises(ConfigError, match=r"did you mean .*190928"):
        load(mirror, "190922")
    with pytest.raises(ConfigError, match="did you mean 'session'"):
        load_dataset("v4-cowley2023", mirror=mirror, sesion="201025")


def test_one_session_needs_only_its_own_files(mirror, tmp_path):
    folder = tmp_path / "v4-cowley2023"
    for path in ("images/images_210224.zip", "responses/responses_210224.npy"):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_bytes((mirror / "v4-cowley2023" / path).read_bytes())
    assert load_dataset("v4-cowley2023", root=folder, session="210224").responses.shape == (800, 67)
    (folder / "responses" / "responses_210224.npy").write_bytes(b"x" * 428928)
    with pytest.raises(ChecksumError, match=r"responses_210224\.npy"):
        load_dataset("v4-cowley2023", root=folder, session="210224")
