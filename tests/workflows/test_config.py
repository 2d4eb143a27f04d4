"""Configs: every key is known, every value has a type, and errors say so."""

import pytest

from neuroenc._util.errors import ConfigError
from neuroenc.workflows import example_config, list_examples, read_config


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
