"""What a config names is looked at before anything is computed."""

import numpy as np
import pytest

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.study import example_config, read_config
from neuroenc.study.preflight import preflight

_OWN = '[data]\nresponses = "y.npy"\nsamples = "t.csv"\n[features]\nkind = "file"\nfile = "f.nc"\n'
_CAPTIONS = 'captions={space = {model = "world"}, decoder = {kind = "retrieval", caption_bank = "objects92"}}'


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"p{k}" for k in range(6)]
    np.save(tmp_path / "y.npy", rng.standard_normal((6, 3)))
    np.save(tmp_path / "f.npy", rng.standard_normal((6, 3)))
    (tmp_path / "t.csv").write_text("stimulus,run\n" + "\n".join(f"{i},{k % 2}" for k, i in enumerate(ids)) + "\n")
    (tmp_path / "short.csv").write_text("stimulus\n" + "\n".join(ids[:5]) + "\n")
    (tmp_path / "other.csv").write_text("stimulus\n" + "\n".join([*ids[:5], "q"]) + "\n")
    (tmp_path / "empty.csv").write_text("stimulus,run\n" + "\n".join(f"{'' if i == 'p1' else i},1" for i in ids) + "\n")
    (tmp_path / "c.csv").write_text("stimulus,caption\np0,a cat\n")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "bank").mkdir()
    data.save(data.make_features(rng.standard_normal((6, 4)), stimulus=ids), tmp_path / "f.nc")
    data.save(data.make_features(rng.standard_normal((4, 4)), stimulus=ids[:4]), tmp_path / "g.nc")
    data.save(data.make_responses(rng.standard_normal((6, 3)), stimulus=ids), tmp_path / "y.nc")
    (tmp_path / "my.toml").write_text(_OWN)
    return tmp_path / "my.toml"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.responses=z.npy"], r"z\.npy"),
        (["data.samples=z.csv"], r"z\.csv"),
        (["data.samples=short.csv"], r"6 samples.*5 rows"),
        (["data.samples=empty.csv"], r"empty\.csv, row 2: stimulus is empty"),
        (["data.samples=c.csv", "data.captions=t.csv"], "caption"),
        (["data.images=t.csv"], r"t\.csv is no folder"),
        (["data.images=pictures"], "p0"),
        (["data.zscore=session"], r"zscore.*column session"),
        (["evaluation.scheme=session"], r"scheme.*column session"),
        (["encoder.cv=session"], r"cv.*column session"),
        (["evaluation.n_splits=7"], r"n_splits = 7.*6"),
        (['evaluation={scheme = "test", test_ids = ["p9"]}'], "test_ids: 'p9'"),
        (["features.file=z.nc"], r"z\.nc"),
        (["features.file=f.npy", "features.samples=short.csv"], r"6 rows.*5"),
        (["features.file=f.npy", "features.samples=other.csv"], r"lacks 1 stimuli, first 'p5'"),
        (["features.file=g.nc"], r"g\.nc lacks 2 stimuli, first 'p4'"),
        (["data.responses=y.nc", "data.samples=", "evaluation.scheme=session"], r"scheme.*session numbers"),
        (["data.responses=y.nc", "data.samples=", "data.images=pictures"], "p0"),
        (['features={kind = "image", model = "world"}'], "data. images"),
        (['features={kind = "captions", model = "world"}'], "data. captions"),
        (['features={kind = "image", model = "nosuch"}', "data.name=world"], "features.model.*nosuch"),
        (['features={kind = "image", model = "world", layer = "no"}', "data.name=world"], "features.model.*layer.*no"),
        (['features={kind = "dense", model = "nosuch"}', "data.name=world"], "features.model.*nosuch"),
        ([_CAPTIONS], r"stimuli = .image. needs .data. images"),
        ([_CAPTIONS, "data.name=world", "captions.decoder.caption_bank=coco"], "captions.decoder.caption_bank"),
        ([_CAPTIONS, "data.name=world", "captions.bank.source=stimulli"], "captions.bank.source.*did you mean 'stimul"),
        ([_CAPTIONS, "data.name=world", "captions.bank.source=./none"], r"captions.bank.source: no folder"),
        ([_CAPTIONS, "data.name=world", "captions.bank.source=bank"], r"captions.bank.source: .*bank"),
        ([_CAPTIONS, "data.name=world", "captions.space.model=wolrd"], "captions.space.model.*did you mean 'world'"),
        (
            [_CAPTIONS, "data.name=world", "captions.decoder={kind = 'prefix', captioner = 'wolrd'}"],
            "captioner: 'wolrd'; did you mean 'world'",
        ),
        (
            [_CAPTIONS, "data.name=world", "captions.retrieval={enabled = true, retriever = 'wolrd'}"],
            "retrieval.retriever: 'wolrd'; did you mean 'world'",
        ),
    ],
)
def test_what_is_missing_is_told(path, more, message):
    if "data.name=world" in more:
        more = [*more, "data.responses=", "data.samples="]
    # A run does not caption: what captions need is looked at for captions.
    command = "caption" if _CAPTIONS in more else "run"
    config = read_config(path, more, command)
    with pytest.raises((ConfigError, DataError), match=message):
        preflight(config, command)


def test_a_config_whose_files_fit_passes(path):
    preflight(read_config(path))
    preflight(read_config(path, ["data.responses=y.nc", "data.samples="]))


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("v4", ["data.options.sesion=1"], "did you mean 'session'"),
        ("nsd", [], "data.options.root"),
        ("nsd", ["data.options.root=nowhere"], "no folder"),
        ("v4", ["data.name=v4-cowley"], "did you mean 'v4-cowley2023'"),
    ],
)
def test_data_sets(name, more, message, tmp_path):
    with pytest.raises((ConfigError, DataError), match=message):
        preflight(example_config(name, more), mirror=tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["compare.readouts={linear = {alpha = 3}}", 'compare.cells=["*/linear"]'], "alpha"),
        (['compare.cells=["clip1/*"]'], r"compare.layers.*clip2/linear"),
        (['compare.cells=["*/linear", "clip9/*"]'], "clip9"),
        (["compare.readouts={linear = {}}", 'compare.cells=["clip*/linear"]'], r"compare.regions.*found 0"),
        (["data.join={session = ['a']}"], "join"),
    ],
)
def test_cells_of_a_comparison(more, message):
    with pytest.raises(ConfigError, match=message):
        preflight(example_config("world", [*more, "compare.readouts.factorized.readout=linear"], "compare"), "compare")


@pytest.mark.parametrize(
    ("more", "command", "message"),
    [
        (["incontext.model.heads=7"], "icl", r"incontext\.model.*heads"),
        (["incontext.task={kind = 'v4', held_out = ['PF']}"], "icl", "held_out.*'PF'; did you mean 'PE'"),
        (["incontext.task={kind = 'v4', held_out = ['PE'], options = {sessions = [201025]}}"], "icl", "all of PE"),
        (["incontext.extend.min_lr=0.5"], "icl", r"incontext\.extend.*min_lr"),
        (["incontext.extend.support=[5, 5000]"], "icl", r"incontext\.extend.*3000"),
        (["incontext.task.test_seeds=[]"], "icl evaluate", "new subjects"),
        (["incontext.predict.query=q.nc"], "icl predict", "features, responses missing"),
        (
            ["incontext.predict={features = 'x.nc', responses = 'y.nc', query = 'q.nc'}"],
            "icl predict",
            r"predict\] features .*does not exist",
        ),
        (
            ["incontext.task={kind = 'arrays', train = [{features = 'x.nc', responses = 'y.nc'}]}"],
            "icl",
            r"task\.train.*1 features .*does not exist",
        ),
    ],
)
def test_in_context_encoders(more, command, message):
    with pytest.raises((ConfigError, DataError), match=message):
        preflight(example_config("world", more, "icl"), command)
