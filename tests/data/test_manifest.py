import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import list_manifests, load_manifest
from neuroenc.data._files import manifest_dir

NAMES = [
    "algonauts2023",
    "atlases-fsaverage",
    "bold-moments",
    "bold5000",
    "bold5000-weights",
    "clip-text-concepts",
    "coco-captions-val2017",
    "coco-permissive",
    "god",
    "haxby2001-slice",
    "laion-fmri",
    "nsd",
    "nsd-imagery",
    "nsd-synthetic",
    "objects92",
    "things-fmri",
    "v4-cowley2023",
]
GOOD = """
name = "tiny"
title = "Tiny"
description = "Two files"
licence = "CC0"
redistribution = "free"
citation = "Nobody (2001)"

[[files]]
path = "a/one.npy"
url = "https://example.org/one.npy"
sha256 = "{sha}"
size = 10
""".replace("{sha}", "0" * 64)
SECOND = '[[files]]\npath = "{path}"\nurl = ""\nsha256 = "' + "1" * 64 + '"\nsize = 3\n'


def write(folder, text):
    path = folder / "tiny.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_data_sets_are_described():
    manifests = list_manifests()
    assert [m.name for m in manifests] == NAMES
    for m in manifests:
        assert m.citation
        assert m.doi or m.name == "laion-fmri"  # whose paper is not out
        assert m.licence
        assert m.size == sum(f.size for f in m.files)
        assert m.size > 0 or m.access
    assert "never" in load_manifest("v4-cowley2023").redistribution.lower()


def test_checksums_are_those_of_the_mirror(mirror):
    sums = dict(reversed(line.split("  ./")) for line in (mirror / "SHA256SUMS").read_text().splitlines())
    for m in list_manifests():
        if not (mirror / m.name).is_dir():
            continue  # not all that has checksums is mirrored
        for f in m.files:
            assert sums[f"{m.name}/{f.path}"] == f.sha256
            assert (mirror / m.name / f.path).stat().st_size == f.size


def test_what_was_selected_or_taken_out_of_other_files_has_no_public_address():
    assert [(m.name, f.path) for m in list_manifests() for f in m.files if not f.url] == [
        *(("bold5000-weights", f"sub-CSI{n}.npz") for n in (1, 2, 3)),
        ("clip-text-concepts", "names.csv"),
        ("clip-text-concepts", "vectors.npy"),
        ("coco-permissive", "manifest.json"),
    ]


def test_no_data_is_in_the_repository():
    files = [p for p in manifest_dir().iterdir() if not p.name.startswith(".")]
    assert {p.suffix for p in files} == {".toml"}
    assert sum(p.stat().st_size for p in files) < 200_000


def test_unknown_name_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'haxby2001-slice'"):
        load_manifest("haxby2001")


def test_a_good_manifest_is_read(tmp_path):
    m = load_manifest(write(tmp_path, GOOD))
    assert (m.name, m.files[0].path, m.size, m.doi) == ("tiny", "a/one.npy", 10, "")


def test_select_by_glob_and_nearest():
    m = load_manifest("v4-cowley2023")
    assert [f.path for f in m.select("*201025*")] == ["images/images_201025.zip", "responses/responses_201025.npy"]
    with pytest.raises(ConfigError, match=r"responses/responses_201025\.npy"):
        m.select(["responses/response_201025.npy"])


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "a\\\\b", "C:/x", "~/x"])
def test_paths_that_could_leave_the_folder_are_refused(tmp_path, path):
    with pytest.raises(ConfigError, match="path"):
        load_manifest(write(tmp_path, GOOD + SECOND.format(path=path)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('licence = "CC0"', 'license = "CC0"', "licence"),
        ('licence = "CC0"', "", "licence"),
        ('licence = "CC0"', "licence = 3", "licence = 3"),
        ('licence = "CC0"', 'licence = " "', "licence"),
        ("size = 10", "sise = 10", "files.0.si"),
        ("size = 10", "size = -1", "size = -1"),
        ("size = 10", "size = 1.5", "size = 1.5"),
        ("size = 10", "size = true", "size = True"),
        ("0" * 64, "0" * 63, "sha256"),
        ('name = "tiny"', 'name = "Not a name"', "name = 'Not a name'"),
        ("https://example.org/one.npy", "file:///etc/passwd", "url"),
        ("[[files]]", "[files]", "files"),
        ("size = 10", "size = ", "TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load_manifest(write(tmp_path, GOOD.replace(old, new)))
    assert message in str(caught.value)
    assert "tiny.toml" in str(caught.value)


def test_a_manifest_that_is_absent_or_no_text_is_named(tmp_path):
    with pytest.raises(ConfigError, match="TOML"):
        load_manifest(write(tmp_path, b"\xff\xfe"))
    with pytest.raises(DataError, match=r"absent\.toml"):
        load_manifest(tmp_path / "absent.toml")
