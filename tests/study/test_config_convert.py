"""Configs in the spelling of before there was one: they load with a warning, and are rewritten by a command."""

import tomllib
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from neuroenc._core.errors import ConfigError
from neuroenc.cli._main import app
from neuroenc.study import example_config, read_config
from neuroenc.study.convert import convert, convert_text
from neuroenc.study.read import dump_config, list_examples, parse_config

KEPT = sorted((Path(__file__).parent / "configs").glob("old_*.toml"))


def kept(name):
    return next(f for f in KEPT if f.stem == f"old_{name}")


@pytest.mark.parametrize("path", KEPT, ids=lambda p: p.stem)
def test_kept_files_load_and_convert_to_the_same_settings(path, tmp_path):
    command = path.stem.split("_")[1]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        old = read_config(path, command=command)
    moved = {"run": "captions.model is now captions.space.model", "caption": "[space] is now [captions.space]"}
    moved |= {"compare": "[grid] is now [compare]", "icl": "[task] is now [incontext.task]"}
    assert [moved[command] in str(w.message) for w in said] == [True]
    new = tmp_path / "new.toml"
    shown = CliRunner().invoke(app, ["config", "convert", str(path)])
    assert shown.exit_code == 0
    new.write_text(shown.stdout, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_config(new, command=command) == old
    assert shown.stdout.count("#") >= path.read_text(encoding="utf-8").count("#")


@pytest.mark.parametrize(
    "name", ["caption_haxby", "caption_world", "compare_v4", "compare_world", "icl_v4", "icl_world"]
)
def test_kept_files_mean_what_the_shipped_examples_mean(name):
    command, example = name.split("_")
    shipped = example_config(example, command=command)
    if shipped.captions is not None:
        # What captions did not have in that spelling.
        captions = shipped.captions.model_copy(update={"retrieval": type(shipped.captions.retrieval)()})
        shipped = shipped.model_copy(update={"captions": captions})
    with pytest.warns(UserWarning, match="old spelling"):
        assert read_config(kept(name), command=command) == shipped


def test_flat_captions_of_a_run():
    with pytest.warns(UserWarning, match=r"captions.gate is now captions.gate.kind"):
        captions = read_config(kept("run_haxby")).captions
    assert captions.space.stimuli == "captions"
    assert (captions.bank.source, captions.gate.kind, captions.gate.rois) == ("captions", "roi", ["vt"])
    assert (captions.decoder.kind, captions.decoder.top, captions.decoder.captions_per_stimulus) == ("retrieval", 5, 1)
    assert not captions.grounding.enabled
    assert (captions.stability.folds, captions.stability.bootstraps, captions.stability.halves) == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("captions.gate=none", lambda c: c.captions.gate.kind == "none"),
        ("gate.kind=none", lambda c: c.captions.gate.kind == "none"),
        ("held_out.share=0.4", lambda c: (c.evaluation.share, c.evaluation.n_splits) == (0.4, 1)),
        ("grid.threads=2", lambda c: c.compute.threads == 2),
        ("grid.n_candidates=1", lambda c: c.compare.n_candidates == 1),
    ],
)
def test_old_changes_of_a_config_in_the_new_spelling(change, value):
    with pytest.warns(UserWarning, match="is now"):
        assert value(example_config("v4", [change]))


def test_tables_that_are_not_enabled_are_left_out():
    table = tomllib.loads(kept("compare_world").read_text(encoding="utf-8"))
    with pytest.warns(UserWarning, match="old spelling"):
        config = parse_config(table, ["layers.enabled=false", "grid.cv=3"], "compare")
    assert config.compare.layers is None
    assert config.compare.cv == 3
    table = tomllib.loads(kept("run_v4").read_text(encoding="utf-8"))
    with pytest.warns(UserWarning, match="old spelling"):
        assert parse_config(table, ["captions.enabled=false"]).captions is None


def test_worlds_and_joins():
    table = {"data": {"world": {"n_stimuli": 9, "seed": 3}}}
    assert convert(table)
    assert table["data"]["options"]["world_seed"] == 80_003
    with pytest.warns(UserWarning, match="old"), pytest.raises(ConfigError, match=r"n_stimulis.*n_train"):
        parse_config({"data": {"world": {"n_stimulis": 9}}})
    table = {"data": {"name": "x", "join": {"session": "190923"}}}
    assert convert(table) == ["data.join.session is now a list"]


def test_what_cannot_be_converted_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="line 2"):
        convert_text("\n[data =\n")
    for table in ({"held_out": 3}, {"grid": 3}, {"evaluation": 3, "captions": {"model": "world"}}):
        with pytest.raises(ConfigError, match="= 3 is a int; expected a table"):
            parse_config(table)
    with pytest.raises(ConfigError, match="options are not read"):
        parse_config({"data": {"world": {}, "options": {}}})
    shown = CliRunner().invoke(app, ["config", "convert", str(tmp_path / "none.toml")])
    assert shown.exit_code == 2


def test_a_config_in_the_new_spelling_is_printed_as_it_is():
    text = '# mine\n[data]\nname = "nsd"\n\n[captions.space] # CLIP\nmodel = "world"\n'
    assert convert_text(text) == text


@pytest.mark.parametrize("command", ["run", "caption", "compare", "icl"])
def test_shown_settings_read_as_the_same_settings(command):
    for name in list_examples(command):
        config = example_config(name, command=command)
        assert parse_config(tomllib.loads(dump_config(config)), command=command) == config


def test_show_and_schema(tmp_path):
    runner = CliRunner()
    shown = runner.invoke(app, ["config", "show", "--example", "world", "--for", "compare", "--set", "compare.cv=7"])
    assert tomllib.loads(shown.stdout)["compare"]["cv"] == 7
    assert runner.invoke(app, ["config", "schema", "--out", str(tmp_path / "s.json")]).exit_code == 0
    schema = runner.invoke(app, ["config", "schema"]).stdout
    assert schema == (tmp_path / "s.json").read_text(encoding="utf-8")
    jsonschema = pytest.importorskip("jsonschema")
    import json

    check = jsonschema.Draft202012Validator(json.loads(schema))
    for name in list_examples("run"):
        check.validate(tomllib.loads(dump_config(example_config(name))))
    check.validate({"features": {"model": "world"}, "captions": {"enabled": False, "space": {"model": "world"}}})
    assert list(check.iter_errors({"encoder": {"cvv": 3}}))
