"""The feature cache: a second run computes nothing, a killed one goes on, a damaged entry is made again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from datetime import timedelta

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import Stimuli
from neuroenc.embedding import ImageEmbedder, TextEmbedder, cache_clear, cache_dir, cache_list

OPTIONS = {"progress": False, "device": "cpu"}


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROENC_CACHE", str(tmp_path / "cache"))


def listed():
    """Features; hashes of files that were read are listed too."""
    table = cache_list()
    return table[table["kind"] == "features"].reset_index(drop=True)


def test_second_run_extracts_nothing(vit, pictures, count):
    stimuli = pictures(20)
    name = f"local-dir:{vit}"
    first = ImageEmbedder(name, **OPTIONS).embed(stimuli)
    assert sum(count) == 20
    again = ImageEmbedder(name, batch_size=3, **OPTIONS).embed(pictures(20))
    assert sum(count) == 20
    assert first.identical(again)
    assert again.values.flags.writeable


def test_second_run_needs_no_model(pictures):
    """A cached result is found without torch."""
    code = (
        "import sys, numpy as np\n"
        "from neuroenc.data import Stimuli\n"
        "from neuroenc.embedding import ImageEmbedder, TextEmbedder\n"
        "s = Stimuli(['a'], np.zeros((1, 8, 8, 3), 'uint8'))\n"
        "ImageEmbedder('world').embed(s); TextEmbedder('world').embed(['a cat'])\n"
        "print('torch' in sys.modules)"
    )
    ImageEmbedder("world").embed(Stimuli(["a"], np.zeros((1, 8, 8, 3), "uint8")))
    TextEmbedder("world").embed(["a cat"])
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize(
    "change",
    [
        {"layer": "block1"},
        {"layer": "block0", "pooling": "mean"},
        {"normalise": True},
        {"preprocessing": {"interpolation": "bilinear"}},
    ],
)
def test_other_settings_are_other_features(vit, pictures, count, change):
    stimuli, name = pictures(4), f"local-dir:{vit}"
    ImageEmbedder(name, **OPTIONS).embed(stimuli)
    ImageEmbedder(name, **change, **OPTIONS).embed(stimuli)
    assert sum(count) == 8
    assert len(listed()) == 2


def test_other_pixels_ids_and_weights_are_other_features(make_folder, pictures, count):
    folder = make_folder("vit", 11)
    ImageEmbedder(f"local-dir:{folder}", **OPTIONS).embed(pictures(2))
    ImageEmbedder(f"local-dir:{folder}", **OPTIONS).embed(pictures(2, seed=1))
    ImageEmbedder(f"local-dir:{folder}", **OPTIONS).embed(pictures(2, prefix="q"))
    other = make_folder("vit", 12)
    os.replace(other / "open_clip_model.safetensors", folder / "open_clip_model.safetensors")
    ImageEmbedder(f"local-dir:{folder}", **OPTIONS).embed(pictures(2))
    assert sum(count) == 8


@pytest.mark.parametrize("damage", ["cut", "flipped", "no meta", "bad meta"])
def test_damaged_entries_are_made_again(vit, pictures, count, damage):
    stimuli, name = pictures(4), f"local-dir:{vit}"
    first = ImageEmbedder(name, **OPTIONS).embed(stimuli)
    (entry,) = (cache_dir() / "features").iterdir()
    values, record = entry / "values.npy", entry / "_result.json"
    content = values.read_bytes()
    if damage == "cut":
        values.write_bytes(content[:-8])
    elif damage == "flipped":
        values.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no meta":
        record.unlink()
    else:
        record.write_text("{")
    with pytest.warns(UserWarning, match="damaged"):
        again = ImageEmbedder(name, **OPTIONS).embed(stimuli)
    assert sum(count) == 8
    assert first.identical(again)
    ImageEmbedder(name, **OPTIONS).embed(stimuli)
    assert sum(count) == 8


KILLED = """
import os, signal, sys
import numpy as np
from neuroenc.data import Stimuli
from neuroenc.embedding import ImageEmbedder
from neuroenc.embedding._openclip import OpenClipImageModel

images, seen, encode = np.load(sys.argv[2]), [0], OpenClipImageModel.encode

def counted(self, batch, layer):
    seen[0] += len(batch)
    if seen[0] > 650:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, batch, layer)

OpenClipImageModel.encode = counted
stimuli = Stimuli([f"p{i}" for i in range(len(images))], images)
ImageEmbedder("local-dir:" + sys.argv[1], batch_size=50, device="cpu", progress=False).embed(stimuli)
"""


@pytest.mark.slow
def test_killed_extraction_goes_on(vit, pictures, count, tmp_path):
    stimuli = pictures(700)
    np.save(tmp_path / "images.npy", stimuli.images)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(vit), str(tmp_path / "images.npy")]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (entry,) = (cache_dir() / "features").glob("*.part")
    assert len(list(entry.glob("block-*"))) == 2
    assert listed()["complete"].tolist() == [False]
    options = {"batch_size": 50, **OPTIONS}
    resumed = ImageEmbedder(f"local-dir:{vit}", **options).embed(stimuli)
    # Two of three blocks of 300 were kept.
    assert sum(count) == 100
    assert listed()["complete"].tolist() == [True]
    assert listed()["what"][0].endswith("700 rows")
    whole = ImageEmbedder(f"local-dir:{vit}", **{**options, "cache": tmp_path / "other"}).embed(stimuli)
    assert sum(count) == 800
    np.testing.assert_array_equal(resumed, whole)
    assert resumed.attrs["content_hash"] == whole.attrs["content_hash"]


def test_interrupted_blocks_that_are_damaged_are_made_again(vit, pictures, count, monkeypatch):
    from neuroenc.embedding._openclip import OpenClipImageModel

    stimuli, name = pictures(520), f"local-dir:{vit}"
    whole = ImageEmbedder(name, cache=False, **OPTIONS).embed(stimuli)
    count.clear()
    counted = OpenClipImageModel.encode

    def interrupted(self, batch, layer):
        if sum(count) >= 512:
            raise KeyboardInterrupt
        return counted(self, batch, layer)

    with monkeypatch.context() as patch:
        patch.setattr(OpenClipImageModel, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ImageEmbedder(name, **OPTIONS).embed(stimuli)
    blocks = sorted((cache_dir() / "features").glob("*.part/*/*.npy"))
    assert len(blocks) == 2
    blocks[0].write_bytes(blocks[0].read_bytes()[:1000])
    count.clear()
    with pytest.warns(UserWarning, match="block: .* is damaged; computed again"):
        found = ImageEmbedder(name, **OPTIONS).embed(stimuli)
    assert sum(count) == 256 + 8
    np.testing.assert_array_equal(found, whole)


def test_a_cache_that_cannot_be_written(vit, pictures, tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="has no room: cannot write .* a part of the path is a file.*not kept"):
        found = ImageEmbedder(f"local-dir:{vit}", cache=tmp_path / "file" / "x", **OPTIONS).embed(pictures(2))
    assert found.shape == (2, 24)


def test_own_folder_and_no_cache(vit, pictures, tmp_path):
    ImageEmbedder(f"local-dir:{vit}", cache=tmp_path / "mine", **OPTIONS).embed(pictures(2))
    assert len(list((tmp_path / "mine").iterdir())) == 1
    ImageEmbedder(f"local-dir:{vit}", cache=False, **OPTIONS).embed(pictures(2))
    assert not (cache_dir() / "features").exists()


def test_large_features_stay_on_disk(vit, pictures, monkeypatch):
    from neuroenc._core import store

    monkeypatch.setattr(store, "IN_MEMORY", 100)
    name = f"local-dir:{vit}"
    mapped = [ImageEmbedder(name, **OPTIONS).embed(pictures(6)) for _ in range(2)]
    for x in mapped:
        assert isinstance(x.variable._data.base, np.memmap) or isinstance(x.variable._data, np.memmap)
    plain = ImageEmbedder(name, cache=False, **OPTIONS).embed(pictures(6))
    np.testing.assert_array_equal(mapped[0], plain)
    assert mapped[1].attrs["content_hash"] == plain.attrs["content_hash"]


def test_list_and_clear(vit, pictures):
    name = f"local-dir:{vit}"
    ImageEmbedder(name, layer="block1", pooling=2, **OPTIONS).embed(pictures(3))
    TextEmbedder("world", normalise=True, **OPTIONS).embed(["a cat", "a dog"])
    table = listed().set_index("what")
    texts = next(what for what in table.index if what.startswith("text"))
    assert sorted(table.index) == [f"image {name} {vit.name} block1 2, 3 rows", texts]
    assert texts.endswith("normalised, 2 rows")
    assert table["complete"].all()
    assert set(table["kind"]) == {"features"}
    foreign = cache_dir() / "features" / "not-ours"
    foreign.mkdir()
    old = table.loc[texts, "path"]
    os.utime(old, (0, 0))
    assert cache_clear(older_than="7d") > 0
    assert [what.split()[0] for what in listed()["what"]] == ["image"]
    assert cache_clear(older_than=timedelta(hours=1)) == 0
    assert cache_clear() > 0
    assert listed().empty
    assert foreign.is_dir()
    with pytest.raises(ConfigError, match="is not an age"):
        cache_clear(older_than="last week")


def test_command_line(vit, pictures):
    from typer.testing import CliRunner

    from neuroenc.cli._cache import app

    run = CliRunner().invoke
    assert "0 entries, 0 B" in run(app, ["list"]).output
    ImageEmbedder(f"local-dir:{vit}", **OPTIONS).embed(pictures(3))
    shown = run(app, ["list"]).output
    assert "2 entries" in shown
    assert "of 1 files" in shown
    assert f"image local-dir:{vit} {vit.name}, 3 rows" in shown
    assert run(app, ["clear"], input="n\n").exit_code == 1
    assert len(listed()) == 1
    assert "is not an age" in run(app, ["clear", "--older-than", "x", "-y"]).output
    assert "freed" in run(app, ["clear", "-y"]).output
    assert listed().empty


def test_blocks_of_an_interrupted_run_that_were_edited_are_made_again(vit, pictures, count):
    from neuroenc.embedding._cache import FeatureCache

    settings, store, rows = {"a": 1}, FeatureCache(), np.arange(12, dtype=np.float32).reshape(6, 2)

    def stopped(start, stop):
        if start == 4:
            raise KeyboardInterrupt
        return rows[start:stop]

    with pytest.raises(KeyboardInterrupt):
        store.compute(settings, 6, 2, stopped, "{}")
    block = sorted(cache_dir().rglob("*.npy"))[0]
    content = block.read_bytes()
    block.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match="is damaged"):
        found = store.compute(settings, 6, 2, lambda a, b: rows[a:b], "{}")
    np.testing.assert_array_equal(found, rows)


SHARED = """
import hashlib, os, sys, time
import numpy as np
from neuroenc.embedding._cache import FeatureCache

rows = np.random.default_rng(0).standard_normal((600, 50)).astype("f4")

def extract(start, stop):
    time.sleep(0.0005)
    return rows[start:stop]

while not os.path.exists(sys.argv[1]):
    pass
for number in range(8):
    values = FeatureCache().compute({"number": number}, 600, 20, extract, "{}")
    print(hashlib.sha256(values.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_two_processes_on_one_cache_give_equal_features(tmp_path):
    command = [sys.executable, "-c", SHARED, str(tmp_path / "go")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    (tmp_path / "go").touch()
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert {line for out, _ in said for line in out.split()} == {said[0][0].split()[0]}
    assert not any("damaged" in errors for _, errors in said)
    assert listed()["complete"].tolist() == [True] * 8
    assert [p for p in cache_dir().rglob("*") if ".tmp" in p.name or p.suffix == ".part"] == []


@pytest.mark.slow
def test_two_processes_embed_the_same_pictures(pictures, tmp_path):
    np.save(tmp_path / "images.npy", pictures(40).images)
    code = (
        "import sys, numpy as np\n"
        "from neuroenc.data import Stimuli\n"
        "from neuroenc.embedding import ImageEmbedder\n"
        "s = Stimuli([str(i) for i in range(40)], np.load(sys.argv[1]))\n"
        "x = ImageEmbedder('world', batch_size=4, progress=False).embed(s)\n"
        "print(x.attrs['content_hash'])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "images.npy")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] != ""


FULL = """
import resource, sys, warnings
import numpy as np
from neuroenc.embedding._cache import FeatureCache

warnings.simplefilter("error") if sys.argv[1] == "error" else None
rows = np.random.default_rng(0).standard_normal((60, 5000)).astype("f4")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
values = FeatureCache().compute({"a": 1}, 60, 20, lambda a, b: rows[a:b], "{}")
print((values == rows).all())
"""


@pytest.mark.parametrize("limit", [100_000, 500_000])
def test_a_disk_that_takes_no_more_is_told_and_does_not_end_the_process(tmp_path, limit):
    """A block does not fit, or the whole does not; a memory-mapped file ended the process with SIGBUS."""
    command = [sys.executable, "-c", FULL, "warn", str(limit)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "True"
    assert "has no room" in run.stderr
    assert "not kept" in run.stderr
    cache_clear()
    assert [p for p in cache_dir().rglob("*") if p.is_file()] == []


def test_room_is_looked_at_before_it_is_taken(monkeypatch):
    import shutil

    from neuroenc.embedding import _cache

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    rows, store = np.ones((6, 2), dtype=np.float32), _cache.FeatureCache()
    with pytest.warns(UserWarning, match=r"has no room: features of .* and 0.001 MB are free.*not kept"):
        found = store.compute({"a": 1}, 6, 2, lambda a, b: rows[a:b], "{}")
    np.testing.assert_array_equal(found, rows)
    monkeypatch.setattr(_cache.kept, "IN_MEMORY", 10)
    with pytest.raises(DataError, match=r"has no room.*cache clear.*NEUROENC_CACHE"):
        store.compute({"a": 1}, 6, 2, lambda a, b: rows[a:b], "{}")


def test_clearing_takes_what_killed_runs_left(monkeypatch):
    import subprocess as sub

    from neuroenc._core.files import _leftover_mark

    gone = sub.Popen([sys.executable, "-c", ""])
    gone.wait()
    mark = _leftover_mark().replace(f"-{os.getpid()}.", f"-{gone.pid}.")
    left = cache_dir() / "features" / f".{'a' * 32}.xyz{mark}"
    left.mkdir(parents=True)
    (left / "values.npy").write_bytes(b"0" * 1000)
    assert cache_clear() == 1000
    assert not left.exists()


@pytest.mark.parametrize("content", ["[1, 2]", '{"value": 3}', "{", '{"value": {}}'])
def test_damaged_entries_are_listed(content):
    entry = cache_dir() / "features" / f"features-{'b' * 16}"
    entry.mkdir(parents=True)
    (entry / "_result.json").write_text("{}")
    (entry / "about.json").write_text(content)
    assert listed()[["kind", "complete", "what"]].values.tolist() == [["features", False, ""]]


def test_the_least_recently_used_make_room(monkeypatch):
    from neuroenc.embedding._cache import FeatureCache

    def add(number):
        rows = np.ones((100, 250), dtype=np.float32)
        FeatureCache().compute({"number": number}, 100, 50, lambda a, b: rows[a:b], "{}")
        (entry,) = set((cache_dir() / "features").glob("features-*")) - set(ages)
        ages.append(entry)
        os.utime(entry, (0, 10_000 * number))

    ages = []
    for number in range(3):
        add(number)
    assert cache_clear(size="220kB") > 100_000
    assert [entry.exists() for entry in ages] == [False, True, True]
    monkeypatch.setenv("NEUROENC_CACHE_SIZE", "150 kB")
    add(3)
    # What has been used within the hour stays.
    assert [entry.exists() for entry in ages] == [False, False, False, True]
    with pytest.raises(ConfigError, match="20 pounds"):
        cache_clear(size="20 pounds")
    monkeypatch.setenv("NEUROENC_CACHE_SIZE", "20 pounds")
    with pytest.warns(UserWarning, match="limits nothing.*20 pounds"):
        add(4)


def test_a_cache_that_may_only_be_read_serves_what_it_holds(vit, pictures, count, monkeypatch):
    stimuli, name = pictures(4), f"local-dir:{vit}"
    first = ImageEmbedder(name, **OPTIONS).embed(stimuli)

    def refuse(*args, **kwargs):
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    assert first.identical(ImageEmbedder(name, **OPTIONS).embed(stimuli))
    assert sum(count) == 4
