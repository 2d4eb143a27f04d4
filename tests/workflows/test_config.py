"""Configs: every key is known, every value has a type, and errors say so."""

import os

import numpy as np
import pytest

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.workflows import (
    example_config,
    list_examples,
    read_caption_config,
    read_compare_config,
    read_config,
    run,
)
from neuroenc.workflows._inputs import load_data


def written(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", list_examples())
def test_examples_are_legal(name):
    assert example_config(name).data.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[data]\nname = "x"\n[featuers]\n', r"unknown setting at the top: 'featuers'; did you mean 'features'"),
        ('[data]\nname = "x"\n[encoder]\nalpha = [1.0]', r"in \[encoder\]: 'alpha'; did you mean 'alphas'"),
        ('[data]\nname = "x"\n[evaluation]\nscheme = "runs"', r"evaluation.scheme: 'runs'; did you mean 'run'"),
        ('[data]\nname = "x"\n[evaluation]\nn_splits = "4"', r"n_splits = '4' is a str; expected int"),
        ('[data]\nname = "x"\n[evaluation]\nn_splits = true', r"n_splits = True is a bool; expected int"),
        ("[data]\n", "either name .* or responses .*found neither"),
        ('[data]\nname = "x"\n[captions]\ntop = 3', r"\[captions\] lacks model"),
        ("[data", "is not TOML"),
        ('[data]\nname = "x"\n[features]\nkind = "file"', "needs file"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_config(written(tmp_path, text))


def test_overrides_and_relative_paths(tmp_path):
    path = written(tmp_path, '[data]\nresponses = "a.nc"\n')
    config = read_config(path, ["evaluation.n_splits=7", "encoder.alphas=[1, 2.0]", "title=Mine"])
    assert config.evaluation.n_splits == 7
    assert config.encoder.alphas == [1, 2.0]
    assert config.title == "Mine"
    assert config.data.responses == str(tmp_path / "a.nc")
    with pytest.raises(ConfigError, match="did you mean 'n_splits'"):
        read_config(path, ["evaluation.n_split=7"])
    with pytest.raises(ConfigError, match=r"table\.key=value"):
        read_config(path, ["evaluation"])


def test_missing_config_and_example():
    with pytest.raises(ConfigError, match="no file"):
        read_config("nowhere.toml")
    with pytest.raises(ConfigError, match="did you mean 'haxby'"):
        example_config("haxbi")


_OWN = '[data]\nresponses = "y.npy"\nsamples = "t.csv"\n'
_CAPTION = _OWN + '[space]\nmodel = "world"\n[decoder]\nkind = "retrieval"\n'
_COMPARE = _OWN + '[features.f]\nkind = "file"\nfile = "f.nc"\n[readouts.linear]\n'


@pytest.mark.parametrize(
    "more",
    [
        "encoder.cv=1",
        "encoder.cv=-3",
        "encoder.cv=2.5",
        "encoder.alphas=[0.0]",
        "encoder.alphas=[-1]",
        "encoder.alphas=[nan]",
        "encoder.alphas=[inf]",
        'encoder.alphas=["a"]',
        "encoder.alphas=1",
        'encoder.max_memory="1.2.3GB"',
        "encoder.max_memory=3",
        "encoder.device=nosuch",
        "encoder.scoring=x",
        "evaluation.n_splits=0",
        "evaluation.n_splits=1",
        "evaluation.n_splits=99999999999999999999",
        "evaluation.permutations=-1",
        "evaluation.permutations=1e3",
        "evaluation.q=0",
        "evaluation.q=2",
        "evaluation.q=nan",
        "evaluation.q=1979-05-27",
        "evaluation.test_ids=[1]",
        "evaluation.test_ids=a",
        'evaluation.test_ids=["a"]',
        "seed=-1",
        "seed=4294967296",
        "seed=1.0",
        "seed=true",
        "title=3",
        "notes=a",
        "data.options={a = 1}",
        "data.rois=3",
        "data.name=x",
        "data.mask=m.nii.gz",
        "data.responses=y.csv",
        "data.samples=",
        "data.responses.x=1",
        "data.",
        "=3",
        ".a=1",
        "data..x=1",
        "nosuch.x=1",
        "features.pooling=0",
        'captions={model = "world", temperature = 0}',
        'captions={model = "world", top = 0}',
        'captions={model = "world", gate = "roi"}',
        'data.images="a\\u0000b"',
        'data.images="$NOSUCH_VARIABLE/x"',
        'data.images="~nosuchuser/x"',
        "evaluation=3",
        "encoder.alphas=[1e999]",
    ],
)
def test_settings_of_a_run_that_cannot_be_right_are_refused(tmp_path, more):
    path = written(tmp_path, _OWN)
    read_config(path)
    with pytest.raises(ConfigError):
        read_config(path, [more])


@pytest.mark.parametrize(
    "more",
    [
        "held_out.share=0",
        "held_out.share=1",
        "held_out.share=nan",
        "held_out.n_last=0",
        "held_out.permutations=-1",
        'held_out.test_ids=["a"]',
        "gate.q=1",
        "gate.min_ceiling_r=2",
        "projection.temperature=0",
        "decoder.top=0",
        "decoder.beams=0",
        "decoder.temperature=-1",
        "decoder.top_p=2",
        "decoder.max_length=0",
        "decoder.n=-1",
        "decoder.rerank=-1",
        "decoder.captions_per_stimulus=0",
        "grounding.images=0",
        "stability.bootstraps=1",
        "stability.halves=-1",
        "analysis.min_voxels=0",
        'analysis.contrast=["a"]',
        "seed=-1",
        "space.stimuli=x",
        'decoder={kind = "prefix", captioner = "world", beams = 6, groups = 4}',
    ],
)
def test_settings_of_captions_that_cannot_be_right_are_refused(tmp_path, more):
    path = written(tmp_path, _CAPTION)
    read_caption_config(path)
    with pytest.raises(ConfigError):
        read_caption_config(path, [more])


@pytest.mark.parametrize(
    "more",
    [
        "grid.cv=1",
        "grid.validation=0",
        "grid.validation=1.5",
        "grid.n_candidates=0",
        "grid.n_bootstraps=0",
        "grid.threads=0",
        "grid.q=0",
        "grid.cells=[1]",
        "features.f.size=0",
        "features.f.grid=-1",
        "seed=-1",
        "features.f.kind=x",
        "features.f.model=",
        "data.world={n_stimuli = 3}",
        "layers={order = ['x']}",
    ],
)
def test_settings_of_a_comparison_that_cannot_be_right_are_refused(tmp_path, more):
    path = written(tmp_path, _COMPARE)
    read_compare_config(path)
    changes = [more, "features.f.kind=image"] if "model" in more else [more]
    with pytest.raises(ConfigError):
        read_compare_config(path, changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"[data]\nname = 'a'\nname = 'b'\n", "line 3"),
        ("title = 'ä'\n".encode("latin-1"), "UTF-8"),
        ("title = 'a'\n".encode("utf-16"), "UTF-8"),
        (b"x = " + b"[" * 3000, "nested"),
        (b"seed = " + b"9" * 5000, "TOML"),
    ],
)
@pytest.mark.parametrize("read", [read_config, read_caption_config, read_compare_config])
def test_files_that_are_no_config(tmp_path, read, content, message):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read(path)


def test_a_folder_or_a_fifo_is_no_config_and_the_nearest_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    written(tmp_path, _OWN)
    for name, message in ((".", "a folder"), ("pipe.toml", "a FIFO"), ("runn.toml", r"did you mean run\.toml")):
        with pytest.raises(ConfigError, match=message):
            read_config(tmp_path / name)


def test_a_mark_at_the_start_home_and_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("STUDY", str(tmp_path / "study"))
    path = tmp_path / "run.toml"
    path.write_text("\ufeff" + _OWN, encoding="utf-8")
    found = read_config(path, ["data.responses=~/y.npy", "data.samples=$STUDY/t.csv", "data.images=img"]).data
    assert found.responses == str(tmp_path / "me" / "y.npy")
    assert found.samples == str(tmp_path / "study" / "t.csv")
    assert found.images == str(tmp_path / "img")


def _files(tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"p{k}" for k in range(6)]
    np.save(tmp_path / "y.npy", rng.standard_normal((6, 3)))
    (tmp_path / "t.csv").write_text("stimulus\n" + "\n".join(ids) + "\n")
    (tmp_path / "c.csv").write_text("stimulus,caption\np0,a cat\n")
    data.save(data.make_features(rng.standard_normal((6, 4)), stimulus=ids), tmp_path / "f.nc")
    return written(tmp_path, _OWN + '[features]\nkind = "file"\nfile = "f.nc"\n')


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.responses=z.npy"], r"z\.npy"),
        (["data.samples=z.csv"], r"z\.csv"),
        (["data.samples=c.csv", "data.captions=t.csv"], "caption"),
        (["data.images=t.csv"], r"t\.csv is no folder"),
        (["features.file=z.nc"], r"z\.nc"),
        (['features={kind = "image", model = "world"}'], "data. images"),
        (["features.kind=image", "features.file=", "features.model=nosuch", "data.images=."], "features.model.*nosuch"),
        (
            ["features.kind=image", "features.file=", "features.model=world", "data.images=.", "features.layer=nosuch"],
            "layer.*nosuch",
        ),
        (['captions={model = "world"}'], r'bank = "stimuli" needs .data. images'),
        (['captions={model = "world", caption_bank = "stimuli"}', "data.images=."], "needs .data. captions"),
        (['captions={model = "wolrd"}', "data.images=."], "captions.model.*did you mean 'world'"),
        (['captions={model = "world", bank = "stimulli"}', "data.images=."], "captions.bank.*did you mean 'stimuli'"),
        (['captions={model = "world", caption_bank = "coco"}', "data.images=."], "captions.caption_bank"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_read(tmp_path, more, message):
    config = read_config(_files(tmp_path), more)
    said = []
    with pytest.raises((ConfigError, DataError), match=message):
        run(config, tmp_path / "out", progress=False, say=said.append)
    assert said == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("stimulus,run\na,1\nb,x\n", r"row 2: run = 'x'"),
        ("stimulus,run\na,1\nb,1.5\n", r"row 2: run = 1\.5"),
        ("stimulus,subject\na,1\n,1\n", r"row 2: stimulus is empty"),
        ("stimulus\n", "no rows"),
        ("stimulus\na\nb\nc\n", r"2 samples.*3 rows"),
    ],
)
def test_tables_of_samples_that_do_not_fit_name_file_and_row(tmp_path, table, message):
    np.save(tmp_path / "y.npy", np.zeros((2, 3)))
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        load_data(read_config(written(tmp_path, _OWN)).data)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(2), "shape"),
        (np.zeros((2, 2), complex), "complex"),
        (np.array([["a"], ["b"]]), "dtype"),
        (np.zeros((2, 0)), "shape"),
        (np.array([[{}], [{}]]), "pickled"),
    ],
)
def test_arrays_that_are_no_responses_are_named(tmp_path, values, message):
    np.save(tmp_path / "y.npy", values, allow_pickle=True)
    (tmp_path / "t.csv").write_text("stimulus\na\nb\n")
    with pytest.raises(DataError, match=rf"y\.npy.*{message}"):
        load_data(read_config(written(tmp_path, _OWN)).data)


def test_ids_that_look_like_missing_values_stay_ids(tmp_path):
    np.save(tmp_path / "y.npy", np.zeros((3, 2)))
    (tmp_path / "t.csv").write_bytes("\ufeffstimulus , run\nNA,1\nnan, 1\nNone,2\n".encode())
    (tmp_path / "c.csv").write_text("stimulus,caption\nNA,null\n")
    found = load_data(read_config(written(tmp_path, _OWN), ["data.captions=c.csv"]).data)
    assert found.responses.stimulus.values.tolist() == ["NA", "nan", "None"]
    assert found.responses.run.values.tolist() == [1, 1, 2]
    assert found.stimuli.captions[0] == ("null",)


@pytest.mark.parametrize(
    "world",
    [
        "{n_stimuli = 0}",
        "{n_stimuli = 'a'}",
        "{n_voxels = 2.5}",
        "{seed = -1}",
        "{n_stimulus = 9}",
        "{n_repeats = true}",
    ],
)
def test_numbers_of_a_simulated_world_are_checked(tmp_path, world):
    path = written(tmp_path, "[data]\nworld = {n_stimuli = 9}\n" + _COMPARE.split(_OWN)[1])
    read_compare_config(path)
    with pytest.raises(ConfigError, match=r"data\.world"):
        read_compare_config(path, [f"data.world={world}"])
    path = written(tmp_path, '[data]\nname = "world"\n' + _CAPTION.split(_OWN)[1])
    with pytest.raises(ConfigError, match=r"data\.options"):
        read_caption_config(
            path, [f"data.options={world.replace('n_stimuli', 'n_train').replace('n_repeats', 'n_test')}"]
        )


def test_a_single_test_stimulus_cannot_be_scored(tmp_path):
    config = read_config(_files(tmp_path), ['evaluation={scheme = "test", test_ids = ["p1"]}'])
    with pytest.raises(DataError, match="1 to test on"):
        run(config, tmp_path / "out", progress=False, say=lambda line: None)


def test_responses_that_never_vary_are_refused(tmp_path):
    config = read_config(_files(tmp_path))
    np.save(tmp_path / "y.npy", np.ones((6, 3)))
    with pytest.raises(DataError, match="3 voxels are constant"):
        run(config, tmp_path / "out", progress=False, say=lambda line: None)
