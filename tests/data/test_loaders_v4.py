import io
import json
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict

from neuroenc._core.errors import ChecksumError, ConfigError, DataError
from neuroenc.data import load_dataset, v4_sessions, validate_responses

# As published: animal, neurons, images (the files of three sessions hold more images than their readme says).
SESSIONS = {
    "190923": ("WE", 33, 1200),
    "190925": ("WE", 36, 1200),
    "190927": ("WE", 31, 1200),
    "190928": ("WE", 24, 1200),
    "201025": ("PE", 89, 1200),
    "210224": ("PE", 67, 800),
    "210322": ("PE", 59, 1200),
    "210325": ("PE", 50, 640),
}


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


# One of each animal, and the two that are stored otherwise.
_KEPT = {"190923", "190925", "201025", "210325"}


@pytest.mark.parametrize("session", [s if s in _KEPT else pytest.param(s, marks=pytest.mark.slow) for s in SESSIONS])
def test_every_session_has_images_in_the_order_of_its_responses(mirror, session):
    animal, n_neurons, n_images = SESSIONS[session]
    data = load(mirror, session)
    y, stimuli = data.responses, data.stimuli
    assert y.shape == (n_images, n_neurons)
    assert stimuli.images.shape == (n_images, 112, 112, 3)
    assert stimuli.images.dtype == np.uint8
    assert y["stimulus"].values.tolist() == stimuli.ids.tolist() == sorted(stimuli.ids)
    assert str(y["subject"].item()) == f"{animal}-{session}"
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


# A folder in the authors' layout, of sessions that no manifest lists.


def official(root, session, n_neurons=5, n_images=12, n_repeats=4, prefix="", average=True, raw=True, side=112):
    rng = np.random.default_rng(int(session))
    for part in ("images", "responses_repeat_averaged", "responses_raw"):
        (root / part).mkdir(parents=True, exist_ok=True)
    # Coarse patches: what JPEG keeps.
    pictures = np.kron(rng.integers(0, 255, (n_images, 4, 4, 3)), np.ones((1, side // 4, side // 4, 1))).astype(
        np.uint8
    )
    order = rng.permutation(n_images)
    with zipfile.ZipFile(root / "images" / f"images_{session}.zip", "w") as archive:
        for n in order:
            buffer = io.BytesIO()
            Image.fromarray(pictures[n]).save(buffer, "JPEG", quality=95)
            archive.writestr(f"{prefix}image{n + 1:04d}.jpg", buffer.getvalue())
            archive.writestr(f"__MACOSX/._image{n + 1:04d}.jpg", b"resource fork")
    values = rng.poisson(3.0, (n_neurons, n_images, n_repeats)).astype(float)
    values[:, ::3, -1] = np.nan
    if raw:
        np.save(root / "responses_raw" / f"responses_{session}.npy", values)
    if average:
        np.save(root / "responses_repeat_averaged" / f"responses_{session}.npy", np.nanmean(values, axis=2))
    return pictures, values


def test_any_session_of_the_published_folder_loads(tmp_path):
    pictures, values = official(tmp_path, "211022", prefix="images_211022/")
    data = load_dataset("v4-cowley2023", root=tmp_path, session=211022)
    assert str(data.responses["subject"].item()) == "RA-211022"
    assert data.extra["animal"] == "RA"
    np.testing.assert_allclose(data.responses.values, np.nanmean(values, axis=2).T, rtol=1e-6)
    assert data.responses["stimulus"].values.tolist() == [f"211022-image{n:04d}" for n in range(1, 13)]
    # Stored in another order, compressed, and each under its own name.
    off = np.abs(data.stimuli.images.astype(float) - pictures).mean((1, 2, 3))
    assert off.max() < np.abs(pictures[1:].astype(float) - pictures[:-1]).mean((1, 2, 3)).min() / 2
    assert data.responses["n_repeats"].values.tolist() == [3 if n % 3 == 0 else 4 for n in range(12)]
    repeats = data.extra["repeats"]
    mean = repeats.groupby("stimulus").mean().sel(stimulus=data.stimuli.ids)
    np.testing.assert_allclose(mean.transpose("stimulus", "voxel").values, data.responses.values, rtol=1e-6)
    record = json.loads(data.responses.attrs["provenance"])
    assert "responses_repeat_averaged/responses_211022.npy" in json.dumps(record)
    validate_responses(data.responses)


def test_averages_or_repeats_alone_are_enough(tmp_path):
    official(tmp_path, "190924", raw=False)
    only = load_dataset("v4-cowley2023", root=tmp_path, session="190924").responses
    assert str(only["subject"].item()) == "WE-190924"
    assert "n_repeats" not in only.coords
    _, values = official(tmp_path, "201016", average=False, n_images=7, n_neurons=82)
    found = load_dataset("v4-cowley2023", root=tmp_path, session="201016").responses
    np.testing.assert_allclose(found.values, np.nanmean(values, axis=2).T, rtol=1e-6)
    assert str(found["subject"].item()) == "PE-201016"


def test_sessions_beside_the_mirrors(mirror, tmp_path):
    folder = tmp_path / "v4-cowley2023"
    official(folder, "211103")
    assert load(tmp_path, "211103").extra["animal"] == "RA"
    with pytest.raises(ConfigError, match=r"unknown session .*'211104'; did you mean .*'211103'"):
        load(tmp_path, "211104")


def test_the_animal_of_a_session_is_the_published_one_or_the_tables(tmp_path):
    assert v4_sessions()["animal"].tolist() == [a for a, *_ in SESSIONS.values()]
    assert set(v4_sessions(["201014", "210301", "210326"])["animal"]) == {"PE"}
    assert set(v4_sessions(["210620", "211008", "211103"])["animal"]) == {"RA"}
    official(tmp_path, "230101")
    with pytest.raises(DataError, match=r"session '230101' is no day .* sessions\.csv"):
        load_dataset("v4-cowley2023", root=tmp_path, session="230101")
    (tmp_path / "sessions.csv").write_text("session,animal,n_repeats\n230101,ZZ,4\n")
    found = load_dataset("v4-cowley2023", root=tmp_path, session="230101")
    assert str(found.responses["subject"].item()) == "ZZ-230101"


def test_the_authors_folder_is_checked_against_the_manifest(mirror, tmp_path):
    for theirs, path in (
        ("images", "images/images_210224.zip"),
        ("responses_repeat_averaged", "responses/responses_210224.npy"),
    ):
        (tmp_path / theirs).mkdir()
        source = mirror / "v4-cowley2023" / path
        (tmp_path / theirs / source.name).write_bytes(source.read_bytes())
    assert load_dataset("v4-cowley2023", root=tmp_path, session="210224").responses.shape == (800, 67)
    average = tmp_path / "responses_repeat_averaged" / "responses_210224.npy"
    values = np.load(average)
    np.save(average, values[:, ::-1])
    with pytest.raises(ChecksumError, match=r"responses_210224\.npy is not the published file"):
        load_dataset("v4-cowley2023", root=tmp_path, session="210224")


def _zip(path, *members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, size in members:
            buffer = io.BytesIO()
            Image.new("RGB", size).save(buffer, "JPEG")
            archive.writestr(name, buffer.getvalue())


def _spoil(kind, root):
    images, average = root / "images" / "images_211022.zip", root / "responses_repeat_averaged" / "responses_211022.npy"
    if kind == "truncated archive":
        images.write_bytes(images.read_bytes()[:2000])
    elif kind == "two names":
        _zip(images, ("a/image0001.jpg", (8, 8)), ("b/image0001.jpg", (8, 8)))
    elif kind == "other size":
        _zip(images, ("image0001.jpg", (8, 8)), ("image0002.jpg", (9, 9)))
    elif kind == "no images":
        _zip(images, ("readme.txt", (8, 8)))
    elif kind == "no picture":
        with zipfile.ZipFile(images, "w") as archive:
            archive.writestr("image0001.jpg", b"<html>not found</html>")
    elif kind == "truncated numbers":
        average.write_bytes(average.read_bytes()[:-100])
    elif kind == "pointer":
        average.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    elif kind == "objects":
        np.save(average, np.array([{}], dtype=object), allow_pickle=True)
    elif kind == "text":
        np.save(average, np.full((5, 12), "a"))
    elif kind == "other images":
        np.save(average, np.zeros((5, 11)))
    elif kind == "NaN":
        np.save(average, np.where(np.eye(5, 12, 3), np.nan, 1.0))
    elif kind == "other neurons":
        np.save(average, np.zeros((4, 12)))
    elif kind == "no responses":
        average.unlink()
        (root / "responses_raw" / "responses_211022.npy").unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated archive", r"images_211022\.zip is damaged"),
        ("two names", r"two images image0001\.jpg, in different folders"),
        ("other size", r"image0002\.jpg has 9 x 9 pixels, expected 8 x 8"),
        ("no images", r"holds no \.jpg image"),
        ("no picture", r"image0001\.jpg of .*images_211022\.zip cannot be read"),
        ("truncated numbers", r"responses_211022\.npy is cut short"),
        ("pointer", r"responses_211022\.npy is not \.npy"),
        ("objects", r"responses_211022\.npy holds pickled"),
        ("text", "expected numbers"),
        ("other images", r"has shape \(5, 11\), expected \(neuron, image\) for the 12 images"),
        ("NaN", "5 values are not finite, first neuron 0, image 3"),
        ("other neurons", "other neurons or images"),
        ("no responses", "no responses of session 211022"),
    ],
)
def test_damaged_files_are_named(tmp_path, kind, message):
    official(tmp_path, "211022")
    _spoil(kind, tmp_path)
    with pytest.raises(DataError, match=message):
        load_dataset("v4-cowley2023", root=tmp_path, session="211022")


def test_a_folder_that_holds_nothing_and_strange_names(tmp_path):
    with pytest.raises(DataError, match=r"holds no images/images_SESSION\.zip"):
        load_dataset("v4-cowley2023", root=tmp_path, session="211022")
    with pytest.raises(ConfigError, match="named by their day"):
        load_dataset("v4-cowley2023", root=tmp_path, session="../../etc")
