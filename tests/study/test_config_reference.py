"""Every key is described, in the reference page and in the schema that editors read."""

import json
import tomllib

import pytest
from typer.testing import CliRunner

from neuroenc.cli._main import app
from neuroenc.study import example_config
from neuroenc.study.config import StudyConfig, config_schema, reference_markdown
from neuroenc.study.read import dump_config, list_examples, parse_config


def test_every_key_is_described():
    schema = config_schema()
    for table in (schema, *schema["$defs"].values()):
        assert table["description"]
        for name, key in table["properties"].items():
            assert key.get("description"), (table["title"], name)


def test_the_reference_has_every_table_and_key():
    page = reference_markdown()
    for title in ("[data]", "[features.NAME]", "[captions.decoder]", "[[incontext.task.train]]", "[compare.layers]"):
        assert f"## `{title}`" in page
    assert "| `share` | number above 0 and below 1 | `0.2` |" in page
    assert "| `model` | text | *required* |" in page
    assert "``" not in page
    for name in ("temperature", "n_candidates", "permutation_null", "response_scale"):
        assert f"| `{name}` |" in page
    assert set(StudyConfig.model_fields) == set(config_schema()["properties"])


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
    check = jsonschema.Draft202012Validator(json.loads(schema))
    for name in list_examples("run"):
        check.validate(tomllib.loads(dump_config(example_config(name))))
    check.validate({"features": {"model": "world"}, "captions": {"enabled": False, "space": {"model": "world"}}})
    assert list(check.iter_errors({"encoder": {"cvv": 3}}))
