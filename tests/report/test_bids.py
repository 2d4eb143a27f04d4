"""The BIDS derivative: names by the rules of BIDS, sidecars, values that come back, refusals."""

from __future__ import annotations

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import read_surface
from neuroenc.data._volumes import read_labels
from neuroenc.report import export_bids
from neuroenc.report.export._bids import ENTITIES, check_label, label_of
from neuroenc.report.export._files import write_captions, write_maps

NAME = re.compile(
    r"sub-(?P<sub>[0-9A-Za-z+]+)(_ses-(?P<ses>[0-9A-Za-z+]+))?(_task-[0-9A-Za-z+]+)?_space-(?P<space>[0-9A-Za-z+]+)"
    r"(_hemi-(?P<hemi>[LR]))?(_res-[0-9A-Za-z+]+)?(_den-[0-9A-Za-z+]+)?(_stat-(?P<stat>[0-9A-Za-z+]+))?"
    r"(_desc-[0-9A-Za-z+]+)?_(?P<suffix>statmap|dseg)(?P<ending>\.nii\.gz|\.func\.gii|\.label\.gii|\.tsv|\.json)"
)


@pytest.fixture
def surface(analysis):
    return analysis.scores


@pytest.fixture
def volume():
    rng = np.random.default_rng(3)
    where = np.unique(rng.integers(0, (6, 7, 5), (80, 3)), axis=0)
    n = len(where)
    affine = np.array([[0, 2.0, 0, -10], [1.5, 0, 0, 4], [0, 0, -3.0, 7], [0, 0, 0, 1]])
    r = rng.normal(0.3, 0.2, n).astype("float32")
    r[3] = np.nan
    return xr.Dataset(
        {
            "r": ("voxel", r, {"metric": "r", "n_stimuli": 44, "split": "test"}),
            "noise_ceiling_r2": ("voxel", rng.random(n), {"ceiling": "ncsnr", "unit": "share of variance"}),
            "above chance": ("voxel", r > 0.2),
            "words": ("voxel", np.full(n, "dog")),
        },
        coords={
            "voxel": np.arange(n),
            "i": ("voxel", where[:, 0]),
            "j": ("voxel", where[:, 1]),
            "k": ("voxel", where[:, 2]),
            "roi": ("voxel", np.where(where[:, 2] > 2, "V1", "FFA;OFA")),
        },
        attrs={
            "affine": affine.ravel().tolist(),
            "volume_shape": [6, 7, 5],
            "space": "native bold",
            "provenance": json.dumps({"seed": 4}),
        },
    )


def _paths(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name.startswith("sub-"))


def test_every_name_follows_the_rules(surface, volume, tmp_path):
    export_bids(surface, tmp_path, subject="01", session="nsd02", task="viewing")
    export_bids(volume, tmp_path, subject="sub-02", resolution="native", desc="encoding")
    files = _paths(tmp_path)
    assert len(files) == 2 * 2 * 6 + 2 * 3 + 2 * 3 + 3
    for file in files:
        match = NAME.fullmatch(file.name)
        assert match, file.name
        folders = [f"sub-{match['sub']}"] + ([f"ses-{match['ses']}"] if match["ses"] else []) + ["func"]
        assert list(file.relative_to(tmp_path).parts[:-1]) == folders
        order = [ENTITIES.index(part.split("-")[0]) for part in file.name.split("_")[:-1]]
        assert order == sorted(order)
        assert match["suffix"] != "statmap" or match["stat"]
        assert file.suffix == ".json" or (file.parent / (file.name.split(".")[0] + ".json")).is_file()


def test_labels_and_description_satisfy_the_official_schema(surface, volume, tmp_path):
    tools = pytest.importorskip("bidsschematools.schema", reason="bids-validator is not installed")
    from bids_validator import BIDSValidator

    export_bids(surface, tmp_path, subject="01", session="a")
    export_bids(volume, tmp_path, subject="02", task="x", resolution="2")
    schema = tools.load_schema()
    short = {schema.objects.entities[e].name: schema.objects.entities[e] for e in schema.rules.entities}
    for file in _paths(tmp_path):
        for part in file.name.split("_")[:-1]:
            name, _, value = part.partition("-")
            if name == "stat":  # BIDS Stats Models; not in the schema of files yet
                continue
            assert re.fullmatch(schema.objects.formats[short[name].format].pattern, value), file.name
            assert value in [str(getattr(x, "value", x)) for x in short[name].get("enum", [value])]
    for legal in ("dseg", ".label.gii", ".tsv"):
        assert legal in str(schema.rules.files.deriv.imaging)
    assert BIDSValidator().is_top_level("/dataset_description.json")
    assert BIDSValidator().is_top_level("/README")
    about = json.loads((tmp_path / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    assert about["GeneratedBy"][0]["Name"] == "neuroenc"
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["BIDSVersion"])


def test_values_of_a_volume_come_back(volume, tmp_path):
    export_bids(volume, tmp_path, subject="01")
    image = nib.load(tmp_path / "sub-01/func/sub-01_space-orig_stat-r_statmap.nii.gz")
    assert np.allclose(image.affine, np.reshape(volume.attrs["affine"], (4, 4)))
    data = image.get_fdata(dtype=np.float32)
    places = tuple(volume[a].values for a in "ijk")
    np.testing.assert_array_equal(data[places], volume["r"].values)
    assert np.isfinite(data).sum() == np.isfinite(volume["r"].values).sum()
    codes = nib.load(tmp_path / "sub-01/func/sub-01_space-orig_desc-roi_dseg.nii.gz").get_fdata()[places]
    lines = (tmp_path / "sub-01/func/sub-01_space-orig_desc-roi_dseg.tsv").read_text().splitlines()
    names = dict(line.split("\t") for line in lines[1:])
    assert lines[0] == "index\tname"
    assert [names[str(int(c))] for c in codes] == volume["roi"].values.tolist()


def test_values_of_a_surface_come_back(surface, tmp_path):
    export_bids(surface, tmp_path, subject="01", names=["r_normalised", "roi"])
    found = read_surface(sorted(tmp_path.rglob("*stat-rNormalised_statmap.func.gii")))
    values = {(h, v): x for h, v, x in zip(found["hemi"].values, found["vertex"].values, found.values)}
    got = [values[h, v] for h, v in zip(surface["hemi"].values, surface["vertex"].values)]
    np.testing.assert_array_equal(got, surface["r_normalised"].values)
    assert np.isfinite(found.values).sum() == surface.sizes["voxel"]
    labels = read_surface(sorted(tmp_path.rglob("*_dseg.label.gii")))
    regions = {(h, v): x for h, v, x in zip(labels["hemi"].values, labels["vertex"].values, labels["roi"].values)}
    got = [regions[h, v] for h, v in zip(surface["hemi"].values, surface["vertex"].values)]
    assert got == surface["roi"].values.tolist()


def test_sidecars_say_what_a_map_is(volume, tmp_path):
    export_bids(volume, tmp_path, subject="01", sources=["report/scores.nc"], resolution="func")
    stem = tmp_path / "sub-01/func/sub-01_space-orig_res-func_stat-r_statmap.json"
    side = json.loads(stem.read_text())
    assert side["Units"] == "1"
    assert side["NumberOfStimuli"] == 44
    assert side["Split"] == "test"
    assert side["CeilingConvention"].startswith("none")
    assert side["Sources"] == ["report/scores.nc"]
    assert side["SpatialReference"] == "orig"
    assert side["Resolution"] == "1.5 x 2 x 3 mm"
    assert side["Provenance"] == {"seed": 4}
    assert side["NumberOfFiniteVoxels"] == volume.sizes["voxel"] - 1
    assert {x["Name"] for x in side["Software"]} >= {"neuroenc", "numpy"}
    ceiling = json.loads(stem.with_name(stem.name.replace("stat-r_", "stat-noiseCeilingR2_")).read_text())
    assert "ncsnr^2" in ceiling["CeilingConvention"]


def test_a_killed_export_goes_on_over_its_own_maps_only(volume, tmp_path, monkeypatch):
    from neuroenc.report.export import _bids

    export_bids(volume, tmp_path / "whole", subject="1", space="T1w")
    plain, done = _bids.write_map, []

    def killed(*args):
        if done:
            raise KeyboardInterrupt
        done.append(plain(*args))
        return done[-1]

    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(_bids, "write_map", killed)
        with pytest.raises(KeyboardInterrupt):
            export_bids(volume, folder, subject="1", space="T1w")
    other = volume.copy(deep=True)
    score = next(name for name in other.data_vars if other[name].dtype.kind == "f")
    other[score] = other[score] + 1
    with pytest.raises(DataError, match="maps exist"):
        export_bids(other, folder, subject="1", space="T1w")
    export_bids(volume, folder, subject="1", space="T1w")
    assert [p.name for p in sorted(folder.rglob("*"))] == [p.name for p in sorted((tmp_path / "whole").rglob("*"))]
    with pytest.raises(DataError, match="maps exist"):
        export_bids(volume, folder, subject="1", space="T1w")


def test_the_ceiling_of_a_normalised_score_is_named(surface, tmp_path):
    export_bids(surface, tmp_path, subject="01", names=["r_normalised", "noise_ceiling_r", "r"])
    said = {
        f.name.split("stat-")[1].split("_")[0]: json.loads(f.read_text())["CeilingConvention"]
        for f in tmp_path.rglob("*hemi-L*statmap.json")
    }
    assert said["rNormalised"] == "divided by noise_ceiling_r; r_max from 3 repeats"
    assert said["noiseCeilingR"] == "r_max from 3 repeats"
    assert said["r"].startswith("none")


def test_the_density_of_fsaverage_is_part_of_the_name(surface, tmp_path):
    export_bids(surface.assign_attrs(space="fsaverage"), tmp_path, subject="01", names=["r"])
    # Vertices below 10242 of fsaverage proper: the mesh is the dense one.
    files = list(tmp_path.rglob("*_den-164k_stat-r_statmap.json"))
    assert len(files) == 2
    assert json.loads(files[0].read_text())["Density"] == "163842 vertices per hemisphere"


def test_several_subjects_stand_apart(surface, tmp_path):
    n = surface.sizes["voxel"]
    both = xr.concat([surface, surface], dim="voxel").assign_coords(voxel=np.arange(2 * n))
    both = both.assign_coords(subject=("voxel", np.repeat(["sub-01", "sub-02"], n)))
    both["r"][:n] *= -1
    export_bids(both, tmp_path, names=["r"])
    files = [tmp_path / f"sub-{s}/func/sub-{s}_space-fsaverage5_hemi-R_stat-r_statmap.func.gii" for s in ("01", "02")]
    one, two = (nib.load(file).darrays[0].data for file in files)
    np.testing.assert_array_equal(one, -two)
    only = export_bids(both, tmp_path / "only", subject="02", names=["r"])
    assert {p.name[:6] for p in only if p.name.startswith("sub")} == {"sub-02"}
    with pytest.raises(ConfigError, match="did you mean 'sub-02'"):
        export_bids(both, tmp_path / "none", subject="sub-03")


def test_both_places_are_written_when_the_volume_has_a_name(surface, tmp_path):
    n = surface.sizes["voxel"]
    zero = ("voxel", np.zeros(n, int))
    both = surface.assign_coords(i=("voxel", np.arange(n)), j=zero, k=zero)
    both = both.assign_attrs(space="fsaverage5", affine=np.eye(4).ravel().tolist(), volume_shape=[n, 1, 1])
    export_bids(both, tmp_path / "a", subject="01", names=["r"])
    assert not list((tmp_path / "a").rglob("*.nii.gz"))
    export_bids(both, tmp_path / "b", subject="01", names=["r"], volume_space="MNI152NLin6Asym")
    volumes = [p.name for p in (tmp_path / "b").rglob("*.nii.gz")]
    assert volumes == ["sub-01_space-MNI152NLin6Asym_stat-r_statmap.nii.gz"]
    assert len(list((tmp_path / "b").rglob("*.func.gii"))) == 2


def test_refusals(volume, surface, tmp_path):
    export_bids(volume, tmp_path, subject="01", names=["r"])
    with pytest.raises(DataError, match=r"1 maps exist .*overwrite"):
        export_bids(volume, tmp_path, subject="01", names=["r"])
    export_bids(volume, tmp_path, subject="01", names=["r"], overwrite=True)
    with pytest.raises(ConfigError, match="did you mean 'r'"):
        export_bids(volume, tmp_path, subject="01", names=["rr"])
    with pytest.raises(ConfigError, match=r"ses='day1'"):
        export_bids(volume, tmp_path / "x", subject="01", session="day_1")
    with pytest.raises(ConfigError, match="name no subject"):
        export_bids(volume, tmp_path / "x")
    nowhere = volume.drop_vars(["i"])
    with pytest.raises(DataError, match="no place"):
        export_bids(nowhere, tmp_path / "x", subject="01")
    nameless = surface.copy()
    nameless.attrs.pop("space")
    with pytest.raises(ConfigError, match="space of the surface"):
        export_bids(nameless, tmp_path / "x", subject="01")
    twins = volume.assign(r_2=volume["r"], r2=volume["r"], R_2=volume["r"])
    with pytest.raises(DataError, match="would both be"):
        export_bids(twins, tmp_path / "x", subject="01")
    assert not (tmp_path / "x").exists()
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    with pytest.raises(DataError, match="raw data set"):
        export_bids(volume, raw, subject="01")
    assert [p.name for p in raw.iterdir()] == ["dataset_description.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.assign_attrs(affine=[1, 2, 3]), "16 numbers"),
        (lambda s: s.assign_attrs(affine="x"), "16 numbers"),
        (lambda s: s.assign_attrs(affine=[0.0] * 16), "places no volume"),
        (lambda s: s.assign_attrs(affine=[float("nan")] * 16), "places no volume"),
        (lambda s: s.assign_attrs(volume_shape="abc"), "three whole numbers"),
        (lambda s: s.assign_attrs(volume_shape=[6, 7, 0]), "three whole numbers"),
        (lambda s: s.assign_attrs(volume_shape=[2, 2, 2]), "outside a volume"),
        (lambda s: s.assign_coords(i=s["i"] + 0.5), "whole numbers"),
        (lambda s: s.assign_coords(roi=("voxel", ["V1\x01"] + ["V1"] * (s.sizes["voxel"] - 1))), "no label file"),
        (lambda s: s.assign(n=("voxel", np.arange(s.sizes["voxel"]) + 2**24)), "round"),
    ],
)
def test_scores_that_no_map_can_hold_are_refused(volume, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        export_bids(change(volume), tmp_path, subject="01")
    assert not list(tmp_path.rglob("*.nii.gz"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.assign_coords(hemi=("voxel", [x.lower() + "h" for x in s["hemi"].values])), "'L' and 'R'"),
        (lambda s: s.assign_coords(vertex=s["vertex"] - 10**6), "from 0 on"),
        (lambda s: s.assign_coords(vertex=s["vertex"] + 0.5), "whole numbers"),
        (lambda s: s.assign_coords(vertex=s["vertex"] + 20_000).assign_attrs(space="fsaverage5"), "10242"),
    ],
)
def test_vertices_that_no_mesh_has_are_refused(surface, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        export_bids(change(surface), tmp_path, subject="01")


def test_a_score_without_values_is_told_and_odd_attributes_are_written(volume, tmp_path):
    scores = volume[["r"]].copy(data={"r": np.full(volume.sizes["voxel"], np.nan)})
    scores["r"].attrs["odd"] = {1, 2}
    with pytest.warns(UserWarning, match="no finite value"):
        export_bids(scores, tmp_path, subject="01", names=["r"])
    side = json.loads(next(tmp_path.rglob("*stat-r_statmap.json")).read_text())
    assert side["Attributes"]["odd"] == "{1, 2}"


@pytest.mark.parametrize("text", ["{", "[1]", '{"GeneratedBy": 3}'])
def test_a_description_that_is_none_is_refused(volume, tmp_path, text):
    (tmp_path / "dataset_description.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset_description\.json"):
        export_bids(volume, tmp_path, subject="01")


def test_regions_and_captions_run_no_formula_and_names_stay_in_the_folder(volume, tmp_path):
    names = np.where(volume["k"] > 2, "=HYPERLINK(1)", "V1")
    export_bids(volume.assign_coords(roi=("voxel", names)), tmp_path / "bids", subject="01", names=["roi"])
    rows = next((tmp_path / "bids").rglob("*_dseg.tsv")).read_text().splitlines()
    assert rows == ["index\tname", "1\t'=HYPERLINK(1)", "2\tV1"]
    assert set(read_labels(next((tmp_path / "bids").rglob("*_dseg.tsv"))).values()) == {"=HYPERLINK(1)", "V1"}
    write_captions(tmp_path, pd.DataFrame({"voxel": [1, 2], "caption": ["=1+1", "a dog"]}))
    assert (tmp_path / "captions.csv").read_text() == "voxel,caption\n1,'=1+1\n2,a dog\n"
    assert json.loads((tmp_path / "captions.json").read_text())[0]["caption"] == "=1+1"
    for name in ("../r", "a/b", "a\\b", ".r"):
        with pytest.raises(DataError, match="file's name"):
            write_maps(tmp_path / "report", volume.rename(r=name), [name])


@pytest.mark.parametrize("text", ["r_normalised", "above chance", "Ω r", "β-weights 2", "a__b"])
def test_labels_are_legal(text):
    assert check_label("stat", label_of(text))
