"""Assemblies of Brain-Score: as its own writer stores them, there and back, and what is refused."""

import hashlib
import io

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image
from typer.testing import CliRunner

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.cli._data import app

# The head of THINGS-fMRI's table of trials as hebart2023_fmri packages it, and repeats of two test pictures.
TRIALS = """trial_type,session,run,subject_id,trial_id,stimulus,concept
train,1,1,1,0,dog_12s.jpg,dog
train,1,1,1,1,mango_12s.jpg,mango
train,1,1,1,8,chicken_wire_12s.jpg,chicken_wire
test,1,1,1,3,candelabra_14s.jpg,candelabra
test,1,1,1,5,pacifier_14s.jpg,pacifier
test,1,2,1,83,candelabra_14s.jpg,candelabra
test,1,2,1,84,pacifier_14s.jpg,pacifier
"""


@pytest.fixture
def trials():
    return pd.read_csv(io.StringIO(TRIALS))


def packaged(path, trials, subjects=("01", "02"), bins=((70, 170),), name="stimulus_id"):
    """An assembly of two subjects, with the indices and the call of Brain-Score's write_netcdf."""
    rng = np.random.default_rng(0)
    test = trials[trials.trial_type == "test"].sort_values("stimulus", kind="stable")
    ids = test.stimulus.str.partition(".")[0].to_numpy()
    n, v = len(ids), 3 * len(subjects)
    coords = {
        name: ("presentation", ids),
        "object_name": ("presentation", test.concept.to_numpy()),
        "stimulus_label_idx": ("presentation", np.unique(ids, return_inverse=True)[1]),
        "region": ("neuroid", np.tile(["V1", "V4", "IT"], len(subjects))),
        "subject": ("neuroid", np.repeat(subjects, 3)),
        "neuroid_id": ("neuroid", np.tile(np.arange(3), len(subjects))),
        "time_bin_start": ("time_bin", [a for a, _ in bins]),
        "time_bin_end": ("time_bin", [b for _, b in bins]),
    }
    values = rng.standard_normal((n, v, len(bins)))
    assembly = xr.DataArray(values, coords=coords, dims=("presentation", "neuroid", "time_bin"))
    assembly = assembly.set_index({d: [k for k in coords if coords[k][0] == d] for d in assembly.dims})
    assembly.attrs = {"identifier": "THINGS_fMRI_test", "stimulus_set_identifier": "THINGS_fMRI_test_Stimuli"}
    stored = assembly.reset_index(list(assembly.dims)).to_dataset(name="data", promote_attrs=True)
    stored.to_netcdf(path, engine="h5netcdf", encoding={"data": {"zlib": True, "complevel": 9}})
    return values, ids


def picture_set(folder, names):
    """Images in a folder, and the CSV that names them."""
    rows = []
    for n, name in enumerate(names):
        file = folder / f"{name}.png"
        Image.fromarray(np.full((6, 6, 3), 9 * n, np.uint8)).save(file)
        rows.append({"object_name": name.rsplit("_", 1)[0], "stimulus_id": name, "filename": file.name})
        rows[-1]["sha1"] = hashlib.sha1(file.read_bytes()).hexdigest()
    pd.DataFrame(rows).to_csv(folder / "stimuli.csv", index=False)
    return folder / "stimuli.csv"


def test_an_assembly_of_two_subjects_as_brain_score_stores_it(tmp_path, trials):
    values, ids = packaged(tmp_path / "assy.nc", trials)
    csv = picture_set(tmp_path, sorted(set(ids)))
    found = data.read_assembly(tmp_path / "assy.nc", csv, tmp_path, subject="02")
    responses = found.responses
    np.testing.assert_allclose(responses, values[:, 3:, 0], rtol=1e-6)
    assert responses.stimulus.values.tolist() == ids.tolist()
    assert responses.repeat.values.tolist() == [0, 1, 0, 1]
    assert responses.roi.values.tolist() == ["V1", "V4", "IT"]
    assert responses.object_name.values.tolist() == ["candelabra", "candelabra", "pacifier", "pacifier"]
    assert set(responses.subject.values) == {"02"}
    assert found.extra["stimulus_set_identifier"] == "THINGS_fMRI_test_Stimuli"
    assert found.stimuli.table["object_name"].tolist() == ["candelabra", "pacifier"]
    assert found.stimuli.image("pacifier_14s").size == (6, 6)
    both = data.read_assembly(tmp_path / "assy.nc", subject="all").responses
    assert both.subject.values.tolist() == ["01"] * 3 + ["02"] * 3
    data.validate(data.average_repeats(responses))
    with pytest.raises(ConfigError, match="2 subjects: 01, 02"):
        data.read_assembly(tmp_path / "assy.nc")
    (tmp_path / "pacifier_14s.png").write_bytes((tmp_path / "candelabra_14s.png").read_bytes())
    with pytest.raises(DataError, match="SHA-1"):
        data.read_assembly(tmp_path / "assy.nc", csv, tmp_path, subject="01")


def test_time_bins_and_the_older_name_of_ids(tmp_path, trials):
    values, ids = packaged(tmp_path / "old.nc", trials, ("m1",), ((70, 120), (120, 170)), "image_id")
    with pytest.raises(ConfigError, match="2 time bins"):
        data.read_assembly(tmp_path / "old.nc")
    second = data.read_assembly(tmp_path / "old.nc", time_bin=1).responses
    np.testing.assert_allclose(second, values[..., 1], rtol=1e-6)
    mean = data.read_assembly(tmp_path / "old.nc", time_bin="mean").responses
    np.testing.assert_allclose(mean, values.mean(-1), rtol=1e-6)
    assert second.stimulus.values.tolist() == ids.tolist()
    with pytest.raises(ConfigError, match="0 to 1"):
        data.read_assembly(tmp_path / "old.nc", time_bin=2)


@pytest.mark.parametrize(("dim", "time_bin"), [("presentation", None), ("stimulus", (0, 200))])
def test_there_and_back(tmp_path, trials, dim, time_bin):
    rng = np.random.default_rng(1)
    labels = {"stimulus": trials.stimulus, "session": trials.session, "run": trials.run, "subject": "sub-01"}
    if dim == "stimulus":
        labels = {"stimulus": trials.stimulus.unique(), "dim": dim, "n_repeats": 2, "subject": "sub-01"}
    responses = data.make_responses(
        rng.standard_normal((len(labels["stimulus"]), 3)),
        voxel=[4, 7, 9],
        ijk=[[0, 0, 1], [1, 0, 1], [1, 1, 1]],
        affine=np.diag([2.0, 2, 2, 1]),
        volume_shape=(2, 2, 2),
        roi=["V1", ["FFA", "OFA"], ""],
        ncsnr=[0.1, 0.2, 0.3],
        space="func1pt8mm",
        units="z",
        zscored="session",
        licence="CC0",
        **labels,
    )
    ids = trials.stimulus.unique()
    table = pd.DataFrame({"object_name": [i.rsplit("_", 1)[0] for i in ids]}, index=ids)
    stimuli = data.Stimuli(ids, rng.integers(0, 255, (len(ids), 5, 5, 3)).astype("uint8"), None, table)
    files = data.write_assembly(responses, tmp_path, identifier="lab.Me2026", stimuli=stimuli, time_bin=time_bin)
    assert [f.name for f in files] == ["assy_lab_Me2026.nc", "stimulus_lab_Me2026.csv", "stimulus_lab_Me2026.zip"]
    stored = xr.open_dataset(files[0], engine="h5netcdf")["data"]
    assert stored.dims == ("presentation", "neuroid") + (("time_bin",) if time_bin else ())
    assert stored.neuroid_id.values.tolist() == ["sub-01.4", "sub-01.7", "sub-01.9"]
    assert stored.region.values.tolist() == ["V1", "FFA;OFA", ""]
    import zipfile

    zipfile.ZipFile(files[2]).extractall(tmp_path / "images")
    found = data.read_assembly(*files[:2], tmp_path / "images")
    back = found.responses.drop_vars(["object_name", "neuroid_id", "region"])
    assert {k: v for k, v in back.attrs.items() if k not in ("source", "provenance")} == {
        k: v for k, v in responses.attrs.items() if k not in ("source", "provenance")
    }
    xr.testing.assert_identical(back.drop_attrs(), responses.drop_attrs())
    for k, i in enumerate(ids):
        np.testing.assert_array_equal(np.asarray(found.stimuli.image(i)), stimuli.images[k])


def test_commands_find_and_write_assemblies(tmp_path, trials):
    responses = data.make_responses(np.eye(7)[:, :2], stimulus=trials.stimulus, subject="s1")
    data.save(responses, tmp_path / "mine.nc")
    call = ["assembly", str(tmp_path / "mine.nc"), str(tmp_path / "out"), "--identifier", "lab.Me2026"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    file = tmp_path / "out" / "assy_lab_Me2026.nc"
    assert "Brain-Score assembly" in CliRunner().invoke(app, ["describe", str(file)]).output
    np.testing.assert_array_equal(data.read_assembly(file).responses, responses)


def test_what_is_no_assembly(tmp_path):
    data.save(data.make_responses([[1.0]], stimulus=["a"]), tmp_path / "ours.nc")
    assert not data.is_assembly(tmp_path / "ours.nc")
    with pytest.raises(DataError, match="no assembly of neuroids"):
        data.read_assembly(tmp_path / "ours.nc")
    nameless = xr.DataArray(np.zeros((2, 1)), dims=("presentation", "neuroid"), name="data")
    nameless.to_netcdf(tmp_path / "nameless.nc", engine="h5netcdf")
    with pytest.raises(DataError, match="no stimulus_id"):
        data.read_assembly(tmp_path / "nameless.nc")
    with pytest.raises(ConfigError, match="identifier='a/b'"):
        data.write_assembly(data.load(tmp_path / "ours.nc"), tmp_path, identifier="a/b")
    with pytest.raises(DataError, match="unknown stimulus"):
        data.write_assembly(data.load(tmp_path / "ours.nc"), tmp_path, identifier="ab", stimuli=data.Stimuli(["b"]))
