"""Configs: every key is known, every value has a type and a range, tables fit together, and errors say so."""

import os

import pytest

from neuroenc._core.errors import ConfigError
from neuroenc.study import StudyConfig, example_config, list_examples, read_config
from neuroenc.study.config import CaptionsConfig, FeaturesConfig, GateConfig
from neuroenc.study.read import example_or_file, parse_config

COMMANDS = ("run", "caption", "compare", "icl", "plan")


def written(tmp_path, text):
    path = tmp_path / "my.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_legal(command):
    for name in list_examples(command):
        config = example_config(name, command=command)
        assert config.data.name or config.incontext or config.plan


def test_examples_hold_what_a_command_reads():
    v4 = example_config("v4", command="caption")
    assert list(v4.features) == ["block8"]
    assert v4.captions.decoder.captioner == "photo"
    assert v4.compare.readouts == {"linear": {}}
    assert len(example_config("v4", command="compare").data.join["session"]) == 8
    assert list_examples("caption") == ["haxby", "haxby-slice", "nsd", "v4", "world"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[data]\nname = "x"\n[featuers]\n', r"at the top: 'featuers'; did you mean 'features'"),
        ('[data]\nname = "x"\n[encoder]\nalpha = [1.0]', r"in \[encoder\]: 'alpha'; did you mean 'alphas'"),
        ('[data]\nname = "x"\n[evaluation]\nscheme = "runs"', r"evaluation.scheme: 'runs'; did you mean 'run'"),
        ('[data]\nname = "x"\n[evaluation]\nn_splits = "4"', r"n_splits = '4' is a str; expected int"),
        ('[data]\nname = "x"\n[evaluation]\nn_splits = true', r"n_splits = True is a bool; expected int"),
        ("[data]\n", "either name .* or responses .*found neither"),
        ('[data]\nname = "x"\n[captions.gate]\nq = 0.1', r"\[captions\] lacks space"),
        ('[data]\nname = "x"\n[captions.spase]\nmodel = "y"', r"in \[captions\]: 'spase'; did you mean 'space'"),
        ('[data]\nname = "x"\n[captions.space]\nstimuli = "image"', r"\[captions.space\] lacks model"),
        ("[data", "is not TOML"),
        ('[data]\nname = "x"\n[features]\nkind = "file"', r"\[features\] kind.*needs file"),
        (
            '[data]\nname = "x"\n[features.clip]\nsize = 3',
            r'\[features.clip\] size = 3 is not read with kind = "image"',
        ),
        ('[data]\nname = "x"\n[features.clip]\nlayr = "a"', r"in \[features.clip\]: 'layr'; did you mean 'layer'"),
        ('[data]\nname = "x"\n[features]\nlayr = "a"', r"in \[features\]: 'layr'; did you mean 'layer'"),
        ('[data]\nname = "x"\n[features]\nmodel = "a"\n[features.b]', r"single space \(model\) beside.*\(b\)"),
        (
            '[data]\nname = "x"\n[compare.readouts]\nlinear = 3',
            r"compare.readouts.linear = 3 is a int; expected a table",
        ),
        ('[data]\nname = "x"\n[encoder]\ncv = 1.5', r"encoder.cv = 1.5 is a float; expected int or str"),
        ('[data]\nname = "x"\n[encoder]\nalphas = [1.0, 0.0]', r"alphas\[1\] = 0.0 is not legal; it must be above 0"),
        ('seed = -1\n[data]\nname = "x"\n', r"seed = -1 .* at least 0 and at most 4294967295"),
        ('[data]\nname = "x"\n[encoder]\ncv = 1\nalphas = 2', r"alphas = 2 is a int.*Also wrong: encoder.cv"),
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


def test_overrides_keep_the_text_of_a_number():
    assert example_config("v4", ["data.options.session=190923"]).data.options == {"session": "190923"}


def test_missing_config_and_example(tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        read_config("nowhere.toml")
    with pytest.raises(ConfigError, match="did you mean 'haxby'"):
        example_config("haxbi")
    with pytest.raises(ConfigError, match="found neither"):
        example_or_file(None, None, None, "compare")
    with pytest.raises(ConfigError, match="found both"):
        example_or_file(tmp_path / "x.toml", "v4", None)


_OWN = '[data]\nresponses = "y.npy"\nsamples = "t.csv"\n'
_CAPTION = _OWN + '[captions.space]\nmodel = "world"\n[captions.decoder]\nkind = "retrieval"\n'
_COMPARE = _OWN + '[features.f]\nkind = "file"\nfile = "f.nc"\n[compare]\n'
_ICL = "[incontext]\n"


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
        "encoder.alphas=[1e999]",
        'encoder.alphas=["a"]',
        "encoder.alphas=1",
        f"encoder.alphas=[1{'0' * 400}]",
        'encoder.max_memory="1.2.3GB"',
        "encoder.max_memory=3",
        "encoder.device=nosuch",
        "encoder.scoring=x",
        "evaluation.n_splits=0",
        "evaluation.n_splits=99999999999999999999",
        "evaluation.permutations=-1",
        "evaluation.permutations=1e3",
        "evaluation.share=0",
        "evaluation.share=1",
        "evaluation.share=nan",
        "evaluation.n_last=0",
        "evaluation.share=0.3",
        "evaluation={n_splits = 1, n_last = 2}",
        'evaluation={n_splits = 1, scheme = "run", share = 0.3}',
        "evaluation.q=0",
        "evaluation.q=2",
        "evaluation.q=nan",
        "evaluation.q=1979-05-27",
        "evaluation.test_ids=[1]",
        "evaluation.test_ids=a",
        'evaluation.test_ids=["a"]',
        "evaluation.scheme=test",
        "evaluation.permutation_mode=whole",
        "seed=-1",
        "seed=4294967296",
        "seed=1.0",
        "seed=true",
        "title=3",
        "notes=a",
        "data.options={a = 1}",
        "data.join={session = ['a']}",
        "data.rois=3",
        "data.rois={V1 = 3}",
        "data.rois={V1 = 'v1.nii.gz'}",
        "data.rois={V1 = {file = 'v1.nii.gz'}}",
        "data.name=x",
        "data.mask=m.nii.gz",
        "data.responses=y.csv",
        "data.responses=y.nii.gz",
        "data.responses=y.nc",
        "data.samples=",
        "data.responses.x=1",
        "data.",
        "=3",
        ".a=1",
        "data..x=1",
        "nosuch.x=1",
        "features.pooling=0",
        "features.a/b.model=world",
        'features={file = "f.npy"}',
        'features={kind = "dense", model = "world"}',
        "compute.workers=0",
        "compute.threads=0",
        "report.without=['map']",
        'data.images="a\\u0000b"',
        'data.images="$NOSUCH_VARIABLE/x"',
        'data.images="~nosuchuser/x"',
        "evaluation=3",
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
        "space.stimuli=x",
        "space.stimuli=captions",
        "gate.q=1",
        "gate.kind=roi",
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
        "decoder.without=['persn']",
        "decoder.kind=prefix",
        'decoder={kind = "prefix", captioner = "world", beams = 6, groups = 4}',
        "bank.source=unseen",
        "bank.source=captions",
        "grounding.images=0",
        "grounding.intervene=true",
        "stability.bootstraps=1",
        "stability.folds=1",
        "stability.max_voxels=1",
        "stability.max_voxels=-1",
        "stability.halves=-1",
        "analysis.min_voxels=0",
        'analysis.contrast=["a"]',
        "retrieval.levels=[]",
        "retrieval.levels=['image', 'image']",
        "retrieval.levels=['images']",
        "retrieval.top=0",
        "enabled=3",
    ],
)
def test_settings_of_captions_that_cannot_be_right_are_refused(tmp_path, more):
    path = written(tmp_path, _CAPTION)
    read_config(path, command="caption")
    with pytest.raises(ConfigError):
        read_config(path, [f"captions.{more}"], "caption")


def test_a_test_of_voxels_needs_permutations(tmp_path):
    with pytest.raises(ConfigError, match="permutations above 0"):
        read_config(written(tmp_path, _CAPTION), ["evaluation.permutations=0"])


@pytest.mark.parametrize(
    "more",
    [
        "compare.cv=1",
        "compare.validation=0",
        "compare.validation=1.5",
        "compare.n_candidates=0",
        "compare.n_bootstraps=0",
        "compare.q=0",
        "compare.cells=[1]",
        "compare.readouts={}",
        "features.f.size=0",
        "features.f.grid=-1",
        "features.f.kind=x",
        "features.f={model = ''}",
        "compare.layers={order = ['x']}",
        "compare.layers={order = ['f'], readout = 'x'}",
        "compare.regions={vision = 'f', dense = 'f', single = 'x'}",
        "compare.regions={vision = 'f', dense = 'f', single = 'f', readouts = ['x']}",
    ],
)
def test_settings_of_a_comparison_that_cannot_be_right_are_refused(tmp_path, more):
    path = written(tmp_path, _COMPARE)
    read_config(path, command="compare")
    with pytest.raises(ConfigError):
        read_config(path, [more], "compare")


@pytest.mark.parametrize(
    "more",
    [
        "task.kind=x",
        "task.zscore=run",
        "task.seeds=[]",
        "task.seeds=[-1]",
        "task.seeds=[0]",
        "task.seeds=[3, 3]",
        "task.options={n_trains = 3}",
        "task.options={n_pool = 0}",
        "task.options={novel_prior = 1}",
        "task={kind = 'v4', held_out = []}",
        "task={kind = 'v4', held_out = ['PE', 'PE']}",
        "task={kind = 'v4', options = {n_features = 500}}",
        "task={kind = 'v4', options = {sessions = 3}}",
        "task={kind = 'v4', options = {sessions = ['a', 'a']}}",
        "task={kind = 'arrays'}",
        "task={kind = 'arrays', train = [{features = 'a.nc'}]}",
        "task={kind = 'arrays', train = [{features = 'a.nc', responses = 'b.nc', query_features = 'c.nc'}]}",
        "model.preset=smal",
        "model.form=x",
        "model.dim=0",
        "model.dropout=1",
        "model.clusters=0",
        "pretrain.support=[5]",
        "pretrain.support=[9, 5]",
        "pretrain.ceiling=[0.5, 0.2]",
        "pretrain.ceiling=[0.5, 1.2]",
        "extend.real=2",
        "extend.precision=16",
        "extend.loss=x",
        "finetune.lr=0",
        "finetune.factor=1",
        "finetune.validation_sizes=[]",
        "finetune.minutes=-1",
        "evaluate.methods=[]",
        "evaluate.methods=['rigde']",
        "evaluate.methods=['ridge', 'ridge']",
        "evaluate.sizes=[1]",
        "evaluate.sizes=[20, 20]",
        "evaluate.n_draws=0",
        "evaluate.n_query=1",
        "evaluate.models={in-context = 'world'}",
        "predict.response_scale=x",
        "predict.n_support=0",
        "seed=-1",
    ],
)
def test_settings_of_in_context_encoders_that_cannot_be_right_are_refused(tmp_path, more):
    path = written(tmp_path, _ICL)
    read_config(path, command="icl")
    with pytest.raises(ConfigError):
        read_config(path, [f"incontext.{more}"], "icl")


@pytest.mark.parametrize(
    "options",
    [
        "{n_train = 0}",
        "{n_train = 'a'}",
        "{n_voxels = 2.5}",
        "{world_seed = -1}",
        "{n_stimulus = 9}",
        "{n_test = true}",
    ],
)
def test_numbers_of_a_simulated_world_are_checked(options):
    parse_config({"data": {"name": "world", "options": {"n_train": 9}}})
    with pytest.raises(ConfigError, match=r"data\.options"):
        parse_config({"data": {"name": "world"}}, [f"data.options={options}"])


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
def test_files_that_are_no_config(tmp_path, content, message):
    path = tmp_path / "my.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_config(path)


def test_a_folder_or_a_fifo_is_no_config_and_the_nearest_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    written(tmp_path, _OWN)
    for name, message in ((".", "a folder"), ("pipe.toml", "a FIFO"), ("mi.toml", r"did you mean my\.toml")):
        with pytest.raises(ConfigError, match=message):
            read_config(tmp_path / name)


def test_a_mark_at_the_start_home_and_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("STUDY", str(tmp_path / "study"))
    path = tmp_path / "my.toml"
    path.write_text("\ufeff" + _OWN, encoding="utf-8")
    found = read_config(path, ["data.responses=~/y.npy", "data.samples=$STUDY/t.csv", "data.images=img"]).data
    assert found.responses == str(tmp_path / "me" / "y.npy")
    assert found.samples == str(tmp_path / "study" / "t.csv")
    assert found.images == str(tmp_path / "img")


def test_every_path_resolves_against_the_file(tmp_path):
    (tmp_path / "bank").mkdir()
    (tmp_path / "nsd").mkdir()
    path = written(
        tmp_path,
        """
        [data]
        responses = "y.nii.gz"
        samples = "t.csv"
        mask = "m.nii.gz"
        rois = { V1 = "v1.nii.gz", FFA = { file = "floc.nii.gz", label = [1, 2] } }
        [features.own]
        file = "f.npy"
        samples = "f.csv"
        [captions]
        space = { model = "world" }
        bank = { source = "bank" }
        decoder = { captioner = "./mine" }
        [[incontext.task.train]]
        features = "a.nc"
        responses = "b.nc"
        [incontext.predict]
        model = "world"
        query = "q.nc"
        """,
    )
    config = read_config(path)
    assert config.data.rois == {"V1": str(tmp_path / "v1.nii.gz"), "FFA": str(tmp_path / "floc.nii.gz:1,2")}
    assert config.features["own"].kind == "file"
    assert config.features["own"].file == str(tmp_path / "f.npy")
    assert config.captions.bank.source == str(tmp_path / "bank")
    assert config.captions.decoder.captioner == str(tmp_path / "mine")
    train = config.incontext.task.train[0]
    assert (train.name, train.features) == ("train-1", str(tmp_path / "a.nc"))
    assert config.incontext.predict.model == "world"
    assert config.incontext.predict.query == str(tmp_path / "q.nc")
    path = written(tmp_path, '[data]\nname = "nsd"\noptions = { root = "nsd" }\n')
    assert read_config(path).data.options == {"root": str(tmp_path / "nsd")}


def test_a_data_set_is_also_found_where_the_command_runs(tmp_path, monkeypatch):
    (tmp_path / "here" / "nsd").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    path = written(tmp_path, '[data]\nname = "nsd"\n')
    assert read_config(path, ["data.options.root=nsd"]).data.options == {"root": str(tmp_path / "here" / "nsd")}


def test_a_config_of_one_half_is_read_for_no_command(tmp_path):
    assert read_config(written(tmp_path, "[incontext]\n"), command="").incontext is not None
    with pytest.raises(ConfigError, match="either name"):
        read_config(written(tmp_path, "[compare]\n"), command="")


def test_a_single_space_is_a_table_of_spaces():
    one = parse_config({"data": {"name": "nsd"}, "features": {"model": "world", "preprocessing": {"size": 64}}})
    assert one.features == {"features": FeaturesConfig(model="world", preprocessing={"size": 64})}
    assert parse_config({"data": {"name": "nsd"}}).features == {"features": FeaturesConfig(kind="image")}


def test_tables_that_are_not_enabled_are_left_out():
    changes = ["compare.layers.enabled=false", "compare.regions.enabled=true"]
    config = example_config("world", changes, "compare")
    assert config.compare.layers is None
    assert config.compare.regions.vision == "clip2"
    assert example_config("v4", ["captions.enabled=false"]).captions is None


def test_a_command_needs_its_table(tmp_path):
    path = written(tmp_path, _OWN)
    for command, table in (("caption", "captions"), ("compare", "compare"), ("icl", "incontext")):
        with pytest.raises(ConfigError, match=rf"\[{table}\]"):
            read_config(path, command=command)


def test_configs_built_in_python_are_checked_as_files_are():
    config = StudyConfig(features={"clip": FeaturesConfig(model="world")}, seed=3)
    assert config.features["clip"].kind == "image"
    with pytest.raises(ConfigError, match="did you mean 'rois'"):
        GateConfig(roi=["V1"])
    with pytest.raises(ConfigError, match=r"\[gate\] kind = .roi. needs rois"):
        CaptionsConfig(space={"model": "world"}, decoder={"kind": "retrieval"}, gate={"kind": "roi"})
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 4
