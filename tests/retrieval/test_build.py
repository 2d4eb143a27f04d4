"""Building a bank: what is in it, what is left out, and that a killed build ends as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import evidence, project
from neuroenc.cli._main import app
from neuroenc.data import Stimuli, simulate_world
from neuroenc.embedding import ImageEmbedder, TextEmbedder
from neuroenc.retrieval import as_bank, build_bank

pytestmark = pytest.mark.filterwarnings("ignore:.*have no licence")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Forty rendered scenes as files."""
    folder = tmp_path_factory.mktemp("scenes")
    world = simulate_world(40, seed=3)
    for n in range(40):
        world.image(n).save(folder / f"{n:02d}.png")
    return folder


def contents(bank: Path) -> dict[str, bytes]:
    return {p.relative_to(bank).as_posix(): p.read_bytes() for p in sorted(bank.rglob("*")) if p.is_file()}


def test_rows_are_the_embeddings_of_the_files(scenes, tmp_path):
    with pytest.warns(UserWarning, match="40 of 40 images have no licence"):
        bank = build_bank(scenes, tmp_path / "bank", shard_rows=16, batch_size=16, progress=False)
    files = sorted(scenes.glob("*.png"))
    want = ImageEmbedder("world", cache=False, progress=False).embed(Stimuli([f.name for f in files], files))
    got = np.concatenate([c.rows for c in bank.chunks(100)])
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    assert bank.ids.tolist() == [f.name for f in files]
    assert set(bank.table()["licence"]) == {"unknown"}
    assert [s["rows"] for s in bank.info["shards"]] == [16, 16, 8]
    record = json.loads(bank.info["provenance"])
    assert record["weights_hash"] == bank.info["weights_hash"] == ImageEmbedder("world").backbone.weights_hash()
    exact = build_bank(scenes, tmp_path / "exact", dtype="float32", progress=False)
    np.testing.assert_allclose(next(exact.chunks(100)).rows, want, rtol=1e-5, atol=1e-5)


OPENED = """
import json, sys
import numpy as np
from neuroenc.embedding import TextEmbedder
from neuroenc.retrieval import load_bank
bank = load_bank(sys.argv[1])
text = np.asarray(TextEmbedder("world", cache=False, progress=False).embed(["a dog"]))
rows = np.concatenate([c.rows for c in bank.chunks(7)]).astype(np.float32)
print(json.dumps({"rows": rows.tolist(), "ids": bank.ids.tolist(), "text": (rows @ text.T)[:, 0].tolist()}))
"""


@pytest.mark.slow
def test_a_new_process_finds_in_a_bank_what_is_in_its_pictures(scenes, tmp_path, fresh):
    build_bank(scenes, tmp_path / "bank", shard_rows=16, dtype="float32", progress=False)
    found = fresh(OPENED, tmp_path / "bank")
    files = sorted(scenes.glob("*.png"))
    want = ImageEmbedder("world", cache=False, progress=False).embed(Stimuli([f.name for f in files], files)).values
    assert found["ids"] == [f.name for f in files]
    np.testing.assert_allclose(found["rows"], want, rtol=1e-5, atol=1e-5)
    text = TextEmbedder("world", cache=False, progress=False).embed(["a dog"]).values
    np.testing.assert_allclose(found["text"], (want @ text.T)[:, 0], rtol=1e-4, atol=1e-4)


def test_duplicates_and_broken_files_are_left_out_by_name(scenes, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(scenes, folder)
    shutil.copy(folder / "03.png", folder / "99-copy.png")
    (folder / "50-broken.png").write_bytes((folder / "05.png").read_bytes()[:200])
    (folder / "51-text.jpg").write_text("not an image")
    (folder / "notes.txt").write_text("not looked at")
    with pytest.warns(UserWarning, match=r"2 of 43 images cannot be read.*50-broken.png.*51-text.jpg"):
        bank = build_bank(folder, tmp_path / "bank", shard_rows=8, batch_size=8, progress=False)
    left = bank.left_out().set_index("id")
    assert left.loc["99-copy.png", ["reason", "of"]].tolist() == ["duplicate", "03.png"]
    assert sorted(left.index) == ["50-broken.png", "51-text.jpg", "99-copy.png"]
    counts = {"images": 43, "embedded": 40, "unreadable": 2, "duplicates": 1, "near_duplicates": 0}
    assert bank.info["counts"] == counts
    assert bank.n == 40
    shown = CliRunner().invoke(app, ["bank", "info", str(tmp_path / "bank"), "--verify"])
    assert shown.exit_code == 0, shown.output
    for text in ("40 of 43", "1 duplicates", "2 unreadable", "50-broken.png", "unknown: 40", "float16", "promises"):
        assert text in shown.output


def test_near_duplicates_by_cosine(scenes, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(scenes, folder)
    with Image.open(folder / "07.png") as handle:
        handle.convert("RGB").save(folder / "70.jpg", quality=97)
        handle.convert("RGB").save(folder / "98.jpg", quality=97)  # and a copy of a near duplicate
    plain = build_bank(folder, tmp_path / "plain", progress=False)
    assert plain.n == 41  # the two JPEG files are equal
    unit = np.concatenate([c.rows for c in plain.chunks(100)]).astype(float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = np.triu(unit @ unit.T, 1)
    same = plain.ids.tolist().index("07.png"), plain.ids.tolist().index("70.jpg")
    limit = float(cosine[same]) - 1e-3
    assert limit > 0.9
    kept = []  # greedily, one by one
    for n in range(len(unit)):
        if not kept or cosine[kept, n].max() <= limit:
            kept.append(n)
    assert 2 <= len(kept) < 41
    names = plain.ids[kept].tolist()
    for rows in (8, 64):
        bank = build_bank(
            folder, tmp_path / f"near{rows}", near_duplicates=limit, shard_rows=rows, batch_size=8, progress=False
        )
        assert bank.ids.tolist() == names
        left = bank.left_out().set_index("id")
        assert left.loc["70.jpg", "of"] == "07.png"
        assert left.loc["70.jpg", "reason"].startswith("near duplicate (0.9")
        assert bank.n + len(left) == 42


def test_manifest_of_photographs_keeps_licence_and_source(mirror, tmp_path):
    source = mirror / "coco-permissive" / "manifest.json"
    rows = json.loads(source.read_text())[:12]
    for row in rows:
        row["file"] = str(mirror / "coco-permissive" / row["file"])
    (tmp_path / "some.json").write_text(json.dumps(rows))
    bank = build_bank(tmp_path / "some.json", tmp_path / "bank", progress=False)
    table = bank.table()
    assert table["id"].tolist() == [str(r["id"]) for r in rows]
    assert table["licence"].tolist() == [r["license"][0] for r in rows]
    assert table["licence_url"].tolist() == [r["license"][1] for r in rows]
    assert table["source"].tolist() == [r["flickr_url"] for r in rows]
    # From weights to evidence to file and licence.
    unit = next(bank.chunks(100)).rows[4].astype(float)
    coef = unit[:, None]
    best = bank.trace(evidence(coef, tmp_path / "bank", k=1))
    assert best["stimulus"].tolist() == [str(rows[4]["id"])]
    assert best["file"].tolist() == [rows[4]["file"]]
    assert best["licence"].tolist() == [rows[4]["license"][0]]
    assert project(coef, tmp_path / "bank", progress=False)["nearest_image"].values.tolist() == [str(rows[4]["id"])]


def test_csv_manifest(scenes, tmp_path):
    files = [os.path.relpath(p, tmp_path) for p in sorted(scenes.glob("*.png"))[:3]]
    frame = pd.DataFrame({"id": ["007", "NA", "c"], "file": files, "licence": ["CC BY 4.0", "", "CC0"], "source": "me"})
    frame.to_csv(tmp_path / "list.csv", index=False)
    with pytest.warns(UserWarning, match="1 of 3 images have no licence"):
        bank = build_bank(tmp_path / "list.csv", tmp_path / "bank", progress=False)
    assert bank.ids.tolist() == ["007", "NA", "c"]
    assert bank.table()["licence"].tolist() == ["CC BY 4.0", "unknown", "CC0"]
    assert bank.info["licences"] == {"CC BY 4.0": 1, "CC0": 1, "unknown": 1}


def start(scenes, out):
    code = "from neuroenc.cli import main; main()"
    words = [
        "bank",
        "build",
        str(scenes),
        "--out",
        str(out),
        "--shard-rows",
        "4",
        "--batch-size",
        "4",
        "--near-duplicates",
        "0.999",
        "--quiet",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


@pytest.mark.slow
def test_killed_and_resumed_is_as_if_uninterrupted(scenes, tmp_path):
    first, whole = (start(scenes, tmp_path / name) for name in ("killed", "whole"))
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed" / "shards").glob("[0-9]*"))) < 3:
        assert first.poll() is None, first.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    done = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "killed" / "shards").glob("[0-9]*")}
    assert 3 <= len(done) < 10
    with pytest.raises(DataError, match=r"not finished \(\d of 10 blocks\)"):
        as_bank(tmp_path / "killed")
    again = start(scenes, tmp_path / "killed")
    for process in (again, whole):
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    for name, when in done.items():  # blocks that were there are not made again
        assert (tmp_path / "killed" / "shards" / name).stat().st_mtime_ns == when


def test_other_settings_or_images_do_not_mix(scenes, tmp_path):
    build_bank(scenes, tmp_path / "bank", progress=False)
    said = []
    build_bank(scenes, tmp_path / "bank", progress=False, say=said.append)
    assert "finished before" in said[0]
    with pytest.raises(ConfigError, match="dtype was 'float16', is 'float32'"):
        build_bank(scenes, tmp_path / "bank", dtype="float32", progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no bank"):
        build_bank(scenes, tmp_path / "other", progress=False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: build_bank(p / "absent", p / "b"), DataError, "does not exist"),
        (lambda p: build_bank(p, p / "b"), DataError, "holds no images"),
        (lambda p: ((p / "x.png").write_text("no"), build_bank(p, p / "b")), DataError, "none of 1 images can be read"),
        (lambda p: ((p / "x.json").write_text("3"), build_bank(p / "x.json", p / "b")), DataError, "not a list"),
        (
            lambda p: ((p / "x.csv").write_text("id,fle\n1,a\n"), build_bank(p / "x.csv", p / "b")),
            DataError,
            "did you mean 'fle'",
        ),
        (
            lambda p: ((p / "x.csv").write_text("id,file\n1,a\n1,b\n"), build_bank(p / "x.csv", p / "b")),
            DataError,
            "ids of x.csv are not unique; the first is '1'",
        ),
        (lambda p: build_bank(p, p / "b", dtype="bfloat16"), ConfigError, "unknown dtype 'bfloat16'"),
        (lambda p: build_bank(p, p / "b", near_duplicates=2), ConfigError, "between 0 and 1"),
    ],
)
def test_errors(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        make(tmp_path)


def test_the_command(scenes, tmp_path):
    done = CliRunner().invoke(app, ["bank", "build", str(scenes), "--out", str(tmp_path / "bank"), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "40 of 40 images (0 duplicates" in done.output
    found = CliRunner().invoke(app, ["bank", "info", str(tmp_path / "bank"), "--json"])
    assert json.loads(found.output)["counts"]["embedded"] == 40
    wrong = CliRunner().invoke(app, ["bank", "info", str(tmp_path)])
    assert wrong.exit_code == 2
    assert "holds no bank" in wrong.stderr


def rows_of(bank):
    return dict(zip(bank.ids.tolist(), np.concatenate([c.rows for c in bank.chunks(100)]), strict=True))


@pytest.mark.parametrize("finished", [True, False])
def test_a_picture_that_changed_is_embedded_again(scenes, tmp_path, finished):
    folder, said = tmp_path / "images", []
    folder.mkdir()
    for n in range(8):
        shutil.copy(scenes / f"{n:02d}.png", folder)
    shutil.copy(scenes / "00.png", folder / "07.png")  # a copy, until the first changes
    options = {"shard_rows": 4, "batch_size": 4, "progress": False, "say": said.append}
    build_bank(folder, tmp_path / "bank", **options)
    if not finished:
        (tmp_path / "bank" / "bank.json").unlink()
    before = (folder / "00.png").stat()
    new = (scenes / "20.png").read_bytes()
    # Of the same size and time as before: content alone tells.
    (folder / "00.png").write_bytes(new[: before.st_size] + b"\0" * (before.st_size - len(new)))
    if len(new) > before.st_size:
        (folder / "00.png").write_bytes(new)
    os.utime(folder / "00.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    again = build_bank(folder, tmp_path / "bank", **options)
    fresh = build_bank(folder, tmp_path / "fresh", **options)
    assert contents(tmp_path / "bank") == contents(tmp_path / "fresh")
    assert again.n == fresh.n == 8  # 07.png is no copy any more, in a block whose own files stayed
    assert any("00.png changed" in line for line in said)
    said.clear()
    build_bank(folder, tmp_path / "bank", **options)
    assert said == [f"{tmp_path / 'bank'}: finished before, 8 images"]


def test_a_folder_in_which_another_process_begins_is_no_stranger(scenes, tmp_path):
    # What one process holds at the moment another looks: the name of an atomic write, and nothing else.
    (tmp_path / "bank" / ".build.json.x.neuroenc-tmp").mkdir(parents=True)
    assert build_bank(scenes, tmp_path / "bank", progress=False).n == 40
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="holds no bank"):
        build_bank(scenes, tmp_path / "notes", progress=False)


def test_edited_tables_of_blocks_are_noticed(scenes, tmp_path):
    build_bank(scenes, tmp_path / "bank", progress=False)
    good = contents(tmp_path / "bank")
    path = tmp_path / "bank" / "shards" / "00000000" / "table.csv"
    path.write_text(path.read_text().replace("unknown", "CC0"))
    with pytest.raises(DataError, match=r"table\.csv is damaged"):
        as_bank(tmp_path / "bank").verify()
    build_bank(scenes, tmp_path / "bank", progress=False)
    assert contents(tmp_path / "bank") == good
    info = tmp_path / "bank" / "bank.json"
    info.write_text(info.read_text().replace('"n_images": 40', '"n_images": 41'))
    with pytest.raises(DataError, match="was changed after it was written"):
        as_bank(tmp_path / "bank")


def test_odd_ids_come_back_and_run_in_no_spreadsheet(scenes, tmp_path):
    ids = ["=1+1", "'=x", "-1.5", "+cmd|a", "@b", "'", "a\rb", 'c,"d', "\u00e9"]
    entries = [{"id": i, "file": str(scenes / f"{n:02d}.png")} for n, i in enumerate(ids)]
    (tmp_path / "m.json").write_text(json.dumps(entries))
    bank = build_bank(tmp_path / "m.json", tmp_path / "bank", progress=False)
    assert bank.ids.tolist() == ids
    assert as_bank(tmp_path / "bank").names(np.arange(len(ids))).tolist() == ids
    assert bank.trace(["=1+1", "'=x"])["file"].tolist() == [e["file"] for e in entries[:2]]
    raw = pd.read_csv(tmp_path / "bank" / "shards" / "00000000" / "table.csv", dtype=str)["id"]
    assert not any(x.startswith(("=", "+", "@")) for x in raw)


def test_what_is_no_ordinary_file_is_left_out_and_never_waited_for(scenes, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(scenes / "00.png", folder)
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "inner.png").mkdir()
    (folder / "short.png").write_bytes((scenes / "01.png").read_bytes()[:100])
    with pytest.warns(UserWarning, match="3 of 4 images cannot be read"):
        bank = build_bank(folder, tmp_path / "bank", progress=False)
    reasons = bank.left_out().set_index("id")["reason"]
    assert "FIFO" in reasons["pipe.png"]
    assert "device" in reasons["zero.png"]
    assert not reasons.str.contains("0x").any()  # no address of an object: equal builds give equal files
    with pytest.warns(UserWarning, match="3 of 4"):
        build_bank(folder, tmp_path / "other", progress=False)
    assert contents(tmp_path / "bank") == contents(tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"id,file\n\xff\xfe,a\n", "not UTF-8"),
        ("m.csv", b"", "is empty"),
        ("m.csv", b"id,file\na,b,c\n", "line 2: 3 cells"),
        ("m.json", b'[{"file": ', "is not JSON"),
        ("m.json", b'[{"file": "a\\ud800.png"}]', "UTF-8"),
        ("m.json", b'[{"file": "a.png", "id": "x"}, {"file": "b.png", "id": "x"}]', "not unique"),
    ],
)
def test_manifests_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        build_bank(tmp_path / name, tmp_path / "bank", progress=False)
