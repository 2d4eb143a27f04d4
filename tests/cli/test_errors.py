"""What a user is told when a command cannot go on."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import typer
from typer.testing import CliRunner

from neuroenc._core.errors import DataError
from neuroenc.cli._errors import clean_errors
from neuroenc.cli._main import app
from neuroenc.study import list_examples


def _told(capsys, raising):
    """Exit code and text of a command that raises."""
    with pytest.raises(typer.Exit) as stop:
        clean_errors(raising)()
    return stop.value.exit_code, capsys.readouterr().err.strip()


def _raise(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (DataError("3 voxels are NaN."), 2, "3 voxels"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b.csv"), 2, "a/b.csv"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b.csv"), 2, "a/b.csv"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), 2, "disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "out/x"), 2, "read-only"),
        (MemoryError("Unable to allocate 12 TiB"), 2, "12 TiB"),
        (ModuleNotFoundError("'x' is needed here. Next step: pip install 'neuroenc[big]'"), 2, "neuroenc[big]"),
        (KeyboardInterrupt(), 130, "go on"),
        (KeyError("voxel"), 1, "report"),
        (OSError("no number and no file"), 1, "report"),
        (json.JSONDecodeError("Expecting value", "", 0), 1, "report"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 1, "report"),
    ],
)
def test_every_error_is_one_line_and_only_faults_of_ours_ask_for_a_report(capsys, error, code, part):
    found, text = _told(capsys, _raise(error))
    assert (found, text.count("\n")) == (code, 0)
    assert part in text


def test_a_warning_is_one_line_without_source(capsys, monkeypatch):
    def command():
        warnings.warn("mask holds [-1, 0, 1]:\n    the 40 voxels above 0 are taken", stacklevel=1)

    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *a: sys.stderr.write(warnings.formatwarning(*a[:4]))  # pytest records them else
        clean_errors(command)()
        assert capsys.readouterr().err == "warning: mask holds [-1, 0, 1]: the 40 voxels above 0 are taken\n"
        monkeypatch.setenv("NEUROENC_TRACEBACK", "1")
        clean_errors(command)()
        assert "test_errors.py" in capsys.readouterr().err
    assert warnings.formatwarning is before


def test_a_broken_file_is_named_even_where_the_reader_does_not(capsys, tmp_path):
    (tmp_path / "settings.json").write_text("{")

    def command():
        path = tmp_path / "settings.json"
        json.loads(path.read_text())

    code, text = _told(capsys, command)
    assert code == 2
    assert "settings.json" in text


def test_the_traceback_is_shown_on_request(capsys, monkeypatch):
    monkeypatch.setenv("NEUROENC_TRACEBACK", "1")
    code, text = _told(capsys, _raise(DataError("3 voxels are NaN.")))
    assert code == 2
    assert "Traceback" in text


def test_quiet_hides_every_bar_and_leaves_the_environment_as_it_was(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)

    @clean_errors
    def command(quiet):
        return os.environ.get("TQDM_DISABLE"), os.environ.get("NEUROENC_PROGRESS")

    assert command(quiet=True) == ("1", "0")
    assert "TQDM_DISABLE" not in os.environ


@pytest.mark.parametrize("command", ["run", "compare", "caption", "plan"])
def test_help_and_errors_list_the_shipped_examples(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    pages = [CliRunner().invoke(app, [command, *more]).output for more in (["--help"], [], ["--example", "nosuch"])]
    for name in list_examples(command):
        assert all(name in page for page in pages)


_WRITER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background may have it ignored
from neuroenc._core.files import atomic_path
from neuroenc.cli._errors import clean_errors
@clean_errors
def command():
    with atomic_path(sys.argv[1]) as path:
        path.write_text("half")
        print("writing", flush=True)
        time.sleep(60)
import typer
try:
    command()
except typer.Exit as stop:
    sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_leaves_nothing_half_written(tmp_path, number, code):
    target = tmp_path / "out" / "x.txt"
    work = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(target)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert work.stdout.readline().strip() == "writing"
    time.sleep(0.05)
    work.send_signal(number)
    _, said = work.communicate(timeout=30)
    assert work.returncode == code
    assert "go on" in said
    assert list(target.parent.iterdir()) == []


def test_a_terminal_without_utf8_and_a_reader_that_leaves(tmp_path):
    """One line is more than such a terminal can show, and `head` reads one line only."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    (tmp_path / "x.toml").write_text('[data]\nname = "x"\n["évaluation"]\n', encoding="utf-8")
    code = "from neuroenc.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(tmp_path / "x.toml")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    piped = subprocess.Popen(
        [sys.executable, "-c", code, "data", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    piped.stdout.close()
    assert piped.stderr.read() == ""
    piped.wait(timeout=30)
