import tomllib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from neuroenc._core.errors import ConfigError
from neuroenc.data._manifest import list_manifests, load_manifest, manifest_dir, safe_join

NAMES = [
    "algonauts2023",
    "bold5000",
    "coco-captions-val2017",
    "coco-permissive",
    "god",
    "haxby2001-slice",
    "nsd",
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
loader = "neuroenc.data.loaders._v4.load"

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
        assert m.doi
        assert m.licence
        assert m.size == sum(f.size for f in m.files)
        assert m.size > 0 or m.access
    assert "never" in load_manifest("v4-cowley2023").redistribution.lower()


def test_checksums_are_those_of_the_mirror(mirror):
    sums = dict(reversed(line.split("  ./")) for line in (mirror / "SHA256SUMS").read_text().splitlines())
    for m in list_manifests():
        for f in m.files:
            assert sums[f"{m.name}/{f.path}"] == f.sha256
            assert (mirror / m.name / f.path).stat().st_size == f.size


def test_only_the_selection_list_of_coco_has_no_public_address():
    assert [(m.name, f.path) for m in list_manifests() for f in m.files if not f.url] == [
        ("coco-permissive", "manifest.json")
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


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/..",
        "./a",
        "a//b",
        "",
        "a\\\\b",
        "C:/x",
        "c:x",
        "~/x",
        "a/b\\u0000",
        "a\\nb",
        "x.part",
        "trailing./x",
        "a /b",
        "a/con\\u202e",
        "a/*",
        "x" * 401,
    ],
)
def test_paths_that_could_leave_the_folder_are_refused(tmp_path, path):
    with pytest.raises(ConfigError, match="path"):
        load_manifest(write(tmp_path, GOOD + SECOND.format(path=path)))


@pytest.mark.parametrize("path", ["a/one.npy", "A/ONE.npy", "a", "a/one.npy/b"])
def test_two_files_at_one_place_are_refused(tmp_path, path):
    with pytest.raises(ConfigError, match=r"stands twice|also the folder"):
        load_manifest(write(tmp_path, GOOD + SECOND.format(path=path)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('licence = "CC0"', 'license = "CC0"', "unknown key 'license'; did you mean 'licence'"),
        ('licence = "CC0"', "", "missing licence"),
        ('licence = "CC0"', "licence = 3", "licence must be a non-empty text"),
        ('licence = "CC0"', 'licence = " "', "licence must be a non-empty text"),
        ("size = 10", "sise = 10", "did you mean 'size'"),
        ("size = 10", "size = -1", "size = -1"),
        ("size = 10", "size = 1.5", "size = 1.5"),
        ("size = 10", "size = true", "size = True"),
        ("size = 10", "size = 99999999999999999999", "size"),
        ("0" * 64, "0" * 63, "sha256"),
        ("0" * 64, "G" * 64, "sha256"),
        ('name = "tiny"', 'name = "other"', "must equal the file's name"),
        ("https://example.org/one.npy", "ftp://example.org/one.npy", "url"),
        ("https://example.org/one.npy", "file:///etc/passwd", "url"),
        ("https://example.org/one.npy", "https://example.org/a b", "url"),
        ("neuroenc.data.loaders._v4.load", "os.path.join", "inside neuroenc"),
        ("neuroenc.data.loaders._v4.load", "neuroenc.evil()", "inside neuroenc"),
        ("[[files]]", "[files]", "files must be"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load_manifest(write(tmp_path, GOOD.replace(old, new)))
    assert message in str(caught.value)
    assert "tiny.toml" in str(caught.value)


def test_unreadable_files_are_clear_errors(tmp_path):
    for text in (b"\xff\xfe", b"name = ", b"a = " + b"[" * 50_000, b"x = " + b"9" * 10_000):
        with pytest.raises(ConfigError, match="TOML"):
            load_manifest(write(tmp_path, text))
    with pytest.raises(ConfigError, match="cannot read"):
        load_manifest(tmp_path / "absent.toml")


def test_truncated_manifests_never_give_anything_but_a_config_error(tmp_path):
    text = (manifest_dir() / "objects92.toml").read_bytes()
    path = tmp_path / "objects92.toml"
    read = []
    for stop in range(0, len(text), 3):
        path.write_bytes(text[:stop])
        try:
            m = load_manifest(path)
        except ConfigError:
            continue
        read.append(stop)
        assert len(m.files) in (1, 2)
    # Legal only when cut inside a last "size = 123", between files, or after the end.
    assert len(read) <= 6


def test_mutated_manifests_never_give_anything_but_a_config_error(tmp_path):
    text = np.frombuffer((manifest_dir() / "objects92.toml").read_bytes(), dtype=np.uint8)
    path = tmp_path / "objects92.toml"
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        changed = text.copy()
        where = rng.integers(0, len(text), size=rng.integers(1, 6))
        changed[where] = rng.integers(0, 256, size=len(where))
        path.write_bytes(changed.tobytes())
        try:
            load_manifest(path)
        except ConfigError:
            refused += 1
    assert refused > 200


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.text(max_size=40),
    sha=st.one_of(st.text(max_size=70), st.integers()),
    size=st.one_of(st.integers(), st.floats(), st.text(max_size=5)),
)
def test_any_values_are_accepted_safely_or_refused(tmp_path, path, sha, size):
    def toml(value):
        if isinstance(value, str):
            return '"' + "".join(f"\\U{ord(c):08x}" for c in value if not 0xD800 <= ord(c) < 0xE000) + '"'
        return str(value)

    text = GOOD + f"[[files]]\npath = {toml(path)}\nurl = ''\nsha256 = {toml(sha)}\nsize = {toml(size)}\n"
    try:
        tomllib.loads(text)
        m = load_manifest(write(tmp_path, text))
    except (ConfigError, ValueError):
        return
    for f in m.files:
        assert tmp_path.resolve() in safe_join(tmp_path, f.path).resolve().parents


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.text(alphabet="ab./\\:~C ", max_size=12))
def test_no_path_leaves_the_folder(tmp_path, path):
    try:
        target = safe_join(tmp_path, path)
    except ConfigError:
        return
    assert tmp_path.resolve() in target.resolve().parents


def test_a_link_that_leads_out_is_refused(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "images").symlink_to(outside)
    with pytest.raises(ConfigError, match="symbolic link"):
        safe_join(inside, "images/one.jpg")
    (inside / "own").mkdir()
    (inside / "alias").symlink_to(inside / "own")
    assert safe_join(inside, "alias/x").name == "x"
