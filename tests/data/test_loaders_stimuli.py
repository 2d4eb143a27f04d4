import json
import shutil

import numpy as np
import pytest
from scipy.stats import spearmanr

from neuroenc._core.errors import ChecksumError, ConfigError
from neuroenc.data import load_dataset, load_manifest, loader_options

UPPER = np.triu_indices(92, 1)


def test_permissive_photographs(mirror):
    data = load_dataset("coco-permissive", mirror=mirror)
    s = data.stimuli
    assert data.responses is None
    assert len(s) == 111
    assert s.ids[0] == "285"
    assert all(p.is_file() for p in s.images)
    assert s.image("285").mode == "RGB"
    assert {len(c) for c in s.captions} == {5}
    assert set(s.table["licence"]) == {"Attribution License", "Attribution-ShareAlike License"}
    assert s.table["flickr_url"].str.startswith("http").all()
    assert s.sel(["285"]).captions[0][1] == "The large brown bear has a black nose."
    # The picture of a caption is its own: file names carry the COCO id.
    assert [int(p.stem) for p in s.images] == [int(i) for i in s.ids]


def test_validation_captions(mirror):
    s = load_dataset("coco-captions-val2017", mirror=mirror).stimuli
    assert len(s) == 5000
    assert s.images is None
    assert sum(len(c) for c in s.captions) == 25_014
    assert min(len(c) for c in s.captions) == 5
    assert s.sel(["179765"]).captions[0][0] == "A black Honda motorcycle parked in front of a garage."
    assert not any("\n" in x or x != x.strip() for c in s.captions for x in c)
    raw = json.loads((mirror / "coco-captions-val2017" / "captions_val2017.json").read_text())
    row = raw["images"][1234]
    assert s.ids[1234] == str(row["id"])
    assert s.table.iloc[1234]["file"] == row["file_name"]


@pytest.fixture(scope="module")
def objects(mirror):
    return load_dataset("objects92", mirror=mirror)


def test_objects_images_and_labels(objects):
    s = objects.stimuli
    assert s.images.shape == (92, 175, 175, 3)
    assert s.images.dtype == np.uint8
    assert s.table["human"].sum() == 24
    assert s.table["face"].sum() == 24
    assert s.table["animal"].sum() == 48
    assert (s.table["human"] <= s.table["animal"]).all()


def test_objects_dissimilarities(objects):
    human = objects.extra["human"]
    assert human.dims == ("subject", "session", "stimulus", "stimulus_2")
    assert human.shape == (4, 2, 92, 92)
    assert human["subject"].values.tolist() == ["BE", "KO", "SN", "TI"]
    for rdm in (human.values, objects.extra["monkey"].values, objects.extra["human_mean"].values):
        np.testing.assert_allclose(rdm, np.swapaxes(rdm, -1, -2), atol=1e-6)
        assert (np.diagonal(rdm, axis1=-2, axis2=-1) == 0).all()
        assert rdm.max() < 2
    mean = human.mean(("subject", "session")).values
    published = objects.extra["human_mean"].values[UPPER]
    assert spearmanr(mean[UPPER], published).statistic == pytest.approx(1, abs=1e-6)


def test_objects_known_figures(objects):
    """Subjects against the mean of the others: .43 .30 .45 .34; pixels against human and monkey IT: .11 and .15."""
    by_subject = objects.extra["human"].mean("session").values[:, UPPER[0], UPPER[1]]
    others = [spearmanr(by_subject[i], np.delete(by_subject, i, 0).mean(0)).statistic for i in range(4)]
    np.testing.assert_allclose(others, [0.43, 0.30, 0.45, 0.34], atol=0.005)
    pixels = 1 - np.corrcoef(objects.stimuli.images.reshape(92, -1).astype(float))
    assert spearmanr(pixels[UPPER], by_subject.mean(0)).statistic == pytest.approx(0.11, abs=0.01)
    assert spearmanr(pixels[UPPER], objects.extra["monkey"].values[UPPER]).statistic == pytest.approx(0.15, abs=0.01)


def test_labels_belong_to_the_images(objects):
    """Faces lie nearer to each other in IT than to the other objects: labels, images and matrices share one order."""
    face = objects.stimuli.table["face"].to_numpy()
    for name in ("monkey", "human_mean"):
        rdm = objects.extra[name].values
        inside = rdm[np.ix_(face, face)][np.triu_indices(face.sum(), 1)].mean()
        across = rdm[np.ix_(face, ~face)].mean()
        assert inside < across - 0.05


def test_vectors_of_concepts(mirror):
    found = load_dataset("clip-text-concepts", mirror=mirror)
    vectors, s = found.extra["vectors"], found.stimuli
    assert vectors.shape == (2068, 512)
    assert (vectors["stimulus"].values == s.ids).all()
    assert s.sel(["lvis:airplane"]).captions == (("a airplane",),)
    assert s.table.loc["lvis:airplane", "synset"] == "airplane.n.01"
    unit = vectors.values / np.linalg.norm(vectors.values, axis=1, keepdims=True)
    # The narrow cone of CLIP's text side.
    assert (unit @ unit.T)[np.triu_indices(2068, 1)].mean() == pytest.approx(0.75, abs=0.005)
    names = s.table["name"].to_numpy()
    near = names[np.argsort(-(unit @ unit[s.index_of("lvis:puppy")[0]]))[:6]]
    assert "dog" in near


def test_weights_of_voxels(mirror):
    sizes = [load_dataset("bold5000-weights", mirror=mirror, subject=n).extra["weights"].sizes for n in (1, 2, 3)]
    assert [s["voxel"] for s in sizes] == [1685, 2270, 3104]
    weights = load_dataset("bold5000-weights", mirror=mirror).extra["weights"]
    assert weights["coef"].dims == ("feature", "voxel")
    assert set(weights["roi"].values) == {"EarlyVis", "LOC", "OPA", "PPA", "RSC"}
    assert {"i", "j", "k", "x", "y", "z", "hemi"} <= set(weights.coords)
    with pytest.raises(ConfigError, match="1 to 3"):
        load_dataset("bold5000-weights", mirror=mirror, subject=4)


def test_loaders_without_options_refuse_any(mirror):
    with pytest.raises(ConfigError, match="unknown option of objects92 'session'"):
        load_dataset("objects92", mirror=mirror, session=1)
    with pytest.raises(ConfigError, match="did you mean 'objects92'"):
        load_dataset("object92")


def test_options_are_known():
    assert loader_options(load_manifest("haxby2001-slice")) == {"image": "1slice", "mask": None, "delay": 2.5}


def test_a_damaged_mirror_stops_the_loader(mirror, tmp_path):
    shutil.copytree(mirror / "objects92", tmp_path / "objects92")
    path = tmp_path / "objects92" / "92_brainRDMs.mat"
    path.chmod(0o644)
    damaged = bytearray(path.read_bytes())
    damaged[1000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ChecksumError, match=r"92_brainRDMs\.mat.*expected sha256"):
        load_dataset("objects92", mirror=tmp_path)
