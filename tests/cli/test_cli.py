"""The command: help, version, clean errors."""

import os
import subprocess
import sys

from typer.testing import CliRunner

from neuroenc._version import __version__
from neuroenc.cli._errors import clean_errors
from neuroenc.cli._main import app


def test_help_names_the_commands():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for name in ("demo", "run", "compare", "icl", "plan", "data", "cache", "bank"):
        assert name in result.output


def test_version():
    assert CliRunner().invoke(app, ["--version"]).output.strip() == f"neuroenc {__version__}"


def test_errors_are_one_message(tmp_path):
    (tmp_path / "x.toml").write_text('[data]\nname = "x"\n[evaluaton]\n')
    done = subprocess.run(
        [sys.executable, "-m", "neuroenc", "run", str(tmp_path / "x.toml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "did you mean 'evaluation'" in done.stderr


def test_run_needs_one_config():
    result = CliRunner().invoke(app, ["run"])
    assert result.exit_code == 2
    assert "--example" in result.output


def test_icl_names_its_stages_and_needs_one_config():
    result = CliRunner().invoke(app, ["icl", "--help"])
    assert result.exit_code == 0
    for name in ("pretrain", "extend", "finetune", "evaluate", "predict"):
        assert name in result.output
        assert CliRunner().invoke(app, ["icl", name]).exit_code == 2


def test_verify_holds_for_the_time_of_the_command(monkeypatch):
    monkeypatch.delenv("NEUROENC_VERIFY", raising=False)
    seen = []
    for verify in (True, False):
        clean_errors(lambda verify: seen.append(os.environ.get("NEUROENC_VERIFY")))(verify=verify)
    assert seen == ["1", None]
    assert "NEUROENC_VERIFY" not in os.environ
    for command in (["run"], ["compare"], ["caption"], ["plan"], ["icl", "evaluate"], ["icl", "predict"]):
        assert "--verify" in CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
