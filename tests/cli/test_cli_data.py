import os
import shutil

import pytest
from typer.testing import CliRunner

from neuroenc.cli._data import app


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.delenv("NEUROENC_MIRROR", raising=False)
    monkeypatch.delenv("NEUROENC_DATA", raising=False)
    monkeypatch.setenv("NEUROENC_CACHE", str(tmp_path / "cache"))
    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])


def test_list(run, mirror):
    result = run("list")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert "GPL-3.0" in lines["v4-cowley2023"]
    assert lines["objects92"].split()[1:4] == ["3.8", "MB", "no"]
    assert "mirror" in next(x for x in run("list", "--mirror", mirror).stdout.splitlines() if x.startswith("objects92"))


def test_show(run):
    result = run("show", "haxby2001-slice")
    assert result.exit_code == 0
    for text in ("10.1126/science.1063736", "image='1slice'", "delay=2.5", "62 (2.6 MB)", "bold_1slice.nii.gz"):
        assert text in result.stdout
    assert "mirror only" in run("show", "coco-permissive").stdout
    assert "bold_1slice" not in run("show", "haxby2001-slice", "--no-files").stdout


def test_fetch_then_verify_then_damage(run, mirror, tmp_path):
    dest = tmp_path / "data"
    result = run("fetch", "objects92", "--dest", dest, "--mirror", mirror)
    assert result.exit_code == 0
    assert "2 files" in result.stdout
    assert (dest / "objects92" / "92_brainRDMs.mat").is_file()
    assert run("verify", "objects92", "--dest", dest).exit_code == 0
    (dest / "objects92" / "92_brainRDMs.mat").write_bytes(b"damaged")
    result = run("verify", "objects92", "--dest", dest)
    assert result.exit_code == 1
    assert "size differs: 92_brainRDMs.mat: expected 224663 bytes" in result.stdout
    assert "1 of 2 files ok" in result.stdout


def test_fetch_some_files_from_a_mirror_in_the_environment(run, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROENC_MIRROR", str(mirror))
    monkeypatch.setenv("NEUROENC_DATA", str(tmp_path / "data"))
    result = run("fetch", "v4-cowley2023", "--file", "responses/*201025*")
    assert result.exit_code == 0
    assert [p.name for p in (tmp_path / "data" / "v4-cowley2023").rglob("*.npy")] == ["responses_201025.npy"]
    assert run("verify", "v4-cowley2023", "--file", "responses/*201025*").exit_code == 0


def test_verify_of_absent_files(run):
    result = run("verify", "objects92")
    assert result.exit_code == 1
    assert result.stdout.count("missing: ") == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("show", "haxby"), "did you mean 'haxby2001-slice'"),
        (("fetch", "objects92", "--file", "92_brainRDM.mat"), "did you mean '92_brainRDMs.mat'"),
        (("fetch", "objects92", "--mirror", "/nonexistent"), "does not exist"),
        (("fetch", "coco-permissive"), "no mirror is set"),
        (("verify", "v4"), "Legal: "),
    ],
)
def test_errors_are_one_message_and_exit_code_2(run, args, message):
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


def test_damaged_mirror_leaves_nothing(run, mirror, tmp_path):
    shutil.copytree(mirror / "objects92", tmp_path / "m" / "objects92")
    path = tmp_path / "m" / "objects92" / "92_brainRDMs.mat"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    places = ("--dest", tmp_path / "d", "--mirror", tmp_path / "m")
    result = run("fetch", "objects92", *places, "--file", "92_brainRDMs.mat")
    assert result.exit_code == 2
    assert "checksum mismatch for 92_brainRDMs.mat" in result.stderr
    assert [p for p in (tmp_path / "d").rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def test_paths_that_cannot_be_described_are_one_line(run, tmp_path):
    os.mkfifo(tmp_path / "pipe.nc")
    os.symlink("self", tmp_path / "self")
    (tmp_path / "cut.nc").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    for name, message in (("pipe.nc", "FIFO"), ("self", "self"), ("cut.nc", "truncated"), ("cut.npy", "cut short")):
        result = run("describe", tmp_path / name)
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert "unexpected" not in result.output
    (tmp_path / "loop").mkdir()
    os.symlink(tmp_path / "loop", tmp_path / "loop" / "again")
    assert run("describe", tmp_path / "loop").exit_code == 1


def test_a_data_set_without_a_list_of_files_has_nothing_to_verify(run):
    result = run("verify", "nsd")
    assert result.exit_code == 2
    assert "no list of files" in result.output


def test_no_bar_is_drawn_where_quiet_is_asked_for(run, mirror, tmp_path, monkeypatch):
    for name in ("NEUROENC_PROGRESS", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    for number, (more, bars) in enumerate((([], True), (["--quiet"], False))):
        place = ("--dest", tmp_path / str(number), "--mirror", mirror)
        assert ("%|" in run("fetch", "objects92", *place, *more).stderr) == bars
