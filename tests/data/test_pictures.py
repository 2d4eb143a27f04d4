"""Pictures as people see them, and which file is the picture of a stimulus."""

from __future__ import annotations

import os
import socket
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from neuroenc._core.errors import DataError
from neuroenc.data import PixelBank, Stimuli, find_pictures, read_picture
from neuroenc.data._pictures import BACKGROUND

RAMP = np.linspace(0, 65535, 24 * 36).reshape(24, 36)
PHOTO = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bit_greys_are_scaled(tmp_path, ending):
    Image.fromarray(RAMP.astype("u2")).save(tmp_path / f"a.{ending}")
    image, changes = read_picture(tmp_path / f"a.{ending}")
    np.testing.assert_allclose(np.asarray(image)[..., 1], RAMP / 257, atol=1)
    assert any("257" in text for text in changes)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert read_picture(content, most_pixels=24 * 36)[0].size == (36, 24)
    # Of the header alone, which holds nothing to decode.
    with pytest.raises(DataError, match="photo has 36 x 24 pixels; at most 863 are read"):
        read_picture(content[:60], "photo", most_pixels=24 * 36 - 1)


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floating_point_greys_are_scaled_by_their_range(tmp_path, top):
    Image.fromarray((RAMP / 65535 * top).astype("f4")).save(tmp_path / "a.tif")
    np.testing.assert_allclose(np.asarray(read_picture(tmp_path / "a.tif")[0])[..., 0], RAMP / 257, atol=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP.astype("f4"), r"from 0 to 65535; legal for floating point are 0\.\.1 and 0\.\.255"),
        (-RAMP.astype("f4") / 65535, "from -1 to -0"),
        (np.full((3, 3), np.nan, "f4"), "not finite"),
        ((RAMP / 257).astype("i4"), "from 0 to 255; legal are 8 bits, and 16 bits"),
        (RAMP.astype("i4") * 3, "from 0 to 196605"),
    ],
)
def test_greys_without_a_scale_are_refused(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=message):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tmp_path, orientation):
    shown = Image.fromarray(PHOTO)
    exif = Image.Exif()
    exif[0x0112] = orientation
    # The stored picture is what the tag's turn makes upright again.
    undo = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(orientation, [])
    for operation in undo:
        shown = shown.transpose(Image.Transpose(operation))
    shown.save(tmp_path / "a.png", exif=exif)
    image, changes = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(image), PHOTO)
    assert bool(changes) == (orientation != 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "RGB tRNS", "L tRNS", "I;16 tRNS"])
def test_one_background_lies_under_all_transparency(tmp_path, mode):
    clear = np.zeros((24, 36), bool)
    clear[:, :18] = True
    if mode in ("RGBA", "LA"):
        values = np.dstack([PHOTO if mode == "RGBA" else PHOTO[..., 0], np.where(clear, 0, 255).astype("u1")])
        Image.fromarray(values).save(tmp_path / "a.png")
    elif mode in ("P", "PA"):
        image = Image.fromarray((~clear).astype("u1"), "P")
        image.putpalette([250, 10, 200, 20, 180, 60])
        if mode == "P":
            image.save(tmp_path / "a.png", transparency=0)
        else:
            image = image.convert("PA")
            image.putalpha(Image.fromarray(np.where(clear, 0, 255).astype("u1")))
    elif mode == "I;16 tRNS":
        Image.fromarray(np.where(clear, 500, 60000).astype("u2")).save(tmp_path / "a.png", transparency=500)
    else:
        values = np.where(clear, 9, 200).astype("u1")
        values = np.dstack([values] * 3) if mode.startswith("RGB") else values
        Image.fromarray(values).save(tmp_path / "a.png", transparency=(9, 9, 9) if mode.startswith("RGB") else 9)
    found, changes = read_picture(image if mode == "PA" else tmp_path / "a.png")
    pixels = np.asarray(found)
    assert (pixels[:, :18] == BACKGROUND).all()
    assert (pixels[:, 18:] != BACKGROUND).any()
    assert any("transparent" in text for text in changes)


def test_opaque_alpha_is_no_change():
    values = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, "u1")])
    image, changes = read_picture(values)
    np.testing.assert_array_equal(np.asarray(image), PHOTO)
    assert changes == ()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    Image.fromarray(PHOTO).convert(mode).save(path)
    image, _ = read_picture(path)
    assert image.mode == "RGB"
    assert image.size == (36, 24)


@pytest.mark.parametrize("ending", ["gif", "tif", "webp", "png"])
def test_of_several_frames_the_first_is_taken_and_told(tmp_path, ending):
    frames = [Image.fromarray(np.full((8, 8, 3), v, "u1")) for v in (40, 200)]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    image, changes = read_picture(tmp_path / f"a.{ending}")
    assert abs(int(np.asarray(image)[0, 0, 0]) - 40) < 4
    assert changes == ("the first of several frames taken",)


def test_what_is_no_picture_is_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as there:
        monkeypatch.chdir(tmp_path)
        there.bind("socket.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("a house")
    (tmp_path / "program.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    Image.fromarray(PHOTO).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    os.truncate(tmp_path / "text.png", 2**31)  # a file with a hole: no room is taken
    for name, word in {
        "fifo.png": "FIFO",
        "endless.png": "device",
        "folder.png": "folder",
        "socket.png": "socket",
        "empty.png": "0 bytes",
        "program.eps": "no picture",
        "cut.png": "300 bytes",
        "text.png": "more than",
        "gone.png": "does not exist",
    }.items():
        with pytest.raises(DataError, match=word):
            read_picture(tmp_path / name)
    # No object's address in the text: equal runs write equal files.
    with pytest.raises(DataError) as found:
        read_picture(b"abc")
    assert "0x" not in str(found.value)


def test_pictures_that_explode_are_refused(tmp_path, monkeypatch):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="864 pixels"):
        read_picture(tmp_path / "a.png")


def test_sets_tell_once_what_was_changed(tmp_path):
    for name in ("a", "b"):
        Image.fromarray(RAMP.astype("u2")).save(tmp_path / f"{name}.png")
    stimuli = Stimuli(["a", "b"], [tmp_path / "a.png", tmp_path / "b.png"])
    with pytest.warns(UserWarning, match="'a' and 1 more: 16-bit greys") as told:
        stimuli.content_hash()
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stimuli.image("b")


def test_hashes_follow_files_and_arrays_that_change(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    files, array = Stimuli(["a"], [tmp_path / "a.png"]), Stimuli(["a"], PHOTO[None].copy())
    first = files.content_hash()
    assert first == array.content_hash()
    array.images[0, 0, 0, 0] ^= 1
    assert array.content_hash() != first
    Image.fromarray(array.images[0]).save(tmp_path / "a.png")
    assert files.content_hash() == array.content_hash()


def _save(folder, *names):
    for n, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (n, 0, 0)).save(path)


def test_ids_are_paths_or_names_with_or_without_ending(tmp_path):
    _save(tmp_path, "faces/01.png", "houses/01.png", "b.c.JPG", "thumbs/b.c.jpg")
    (tmp_path / "b.c.txt").write_text("a text")
    (tmp_path / "._b.c.jpg").write_text("a Mac's second file")
    found = find_pictures(tmp_path, ["faces/01", "houses/01.png", "b.c", "thumbs/b.c"])
    assert [p.relative_to(tmp_path).as_posix() for p in found] == [
        "faces/01.png",
        "houses/01.png",
        "b.c.JPG",
        "thumbs/b.c.jpg",
    ]


@pytest.mark.parametrize("names", [("a/01.png", "b/01.png"), ("01.png", "01.jpg"), ("a/01.png", "a/01.gif")])
def test_two_pictures_of_one_id_are_refused(tmp_path, names):
    _save(tmp_path, *names)
    with pytest.raises(DataError, match=rf"'01' has 2 pictures.*{names[0]}.*Next step: keep one"):
        find_pictures(tmp_path, ["01"])
    assert len(find_pictures(tmp_path, [names[0]])) == 1


def test_names_meet_whatever_way_accents_are_stored(tmp_path):
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    _save(tmp_path, f"{apart}.png")
    assert find_pictures(tmp_path, [composed]) == find_pictures(tmp_path, [apart])
    _save(tmp_path, f"{composed}.png")
    with pytest.raises(DataError, match="has 2 pictures"):
        find_pictures(tmp_path, [composed])
    with pytest.raises(DataError, match="accents are composed"):
        Stimuli([composed, apart])
    with pytest.raises(DataError, match="composed"):
        Stimuli([composed]).index_of([apart])


def test_missing_pictures_are_named_as_text_with_what_is_there(tmp_path):
    _save(tmp_path, "face1.png")
    (tmp_path / "face2.svg").write_text("<svg/>")
    with pytest.raises(DataError, match=r"1 of 2 stimuli \(first: 'fase1'\)\. Nearest: face1") as found:
        find_pictures(tmp_path, np.array(["face1", "fase1"]))
    assert "np.str_" not in str(found.value)
    with pytest.raises(DataError, match=r"face2\.svg is none that is read\. Legal endings: .*\.gif"):
        find_pictures(tmp_path, ["face2"])
    with pytest.raises(DataError, match="no folder"):
        find_pictures(tmp_path / "face1.png", ["a"])
    assert find_pictures(tmp_path, ["face1", "no"], partial=True) == [tmp_path / "face1.png", None]


@pytest.mark.parametrize(
    ("images", "step"),
    [
        (np.zeros((2, 8, 9)), r"np\.repeat\(images\[\.\.\., None\], 3.*\(255 \* images\)\.round"),
        (np.zeros((2, 3, 8, 9), "u1"), r"transpose\(0, 2, 3, 1\)"),
        (np.full((2, 8, 9, 3), 40000, "u2"), "257"),
        (np.full((2, 8, 9, 3), 200.0), r"0\.\.255"),
        (np.zeros((2, 8, 9, 4), "u1"), "background"),
        (np.zeros((2, 0, 9, 3), "u1"), "one picture for each"),
        ([np.zeros((2, 2, 3), "u1"), np.zeros((3, 3, 3), "u1")], "one size"),
        ("folder", "find_pictures"),
    ],
)
def test_arrays_that_are_no_pictures_say_what_makes_them(images, step):
    with pytest.raises(DataError, match=step):
        Stimuli(["a", "b"], images)


def test_paths_may_be_an_array(tmp_path):
    _save(tmp_path, "a.png")
    assert Stimuli(["a"], np.array([str(tmp_path / "a.png")])).image("a").size == (4, 4)


def test_banks_of_pixels_that_were_cut_name_the_picture(tmp_path):
    import h5py

    with h5py.File(tmp_path / "a.hdf5", "w") as handle:
        handle["imgBrick"] = np.zeros((4, 64, 64, 3), "u1")
    bank = PixelBank(tmp_path / "a.hdf5", "imgBrick")
    os.truncate(tmp_path / "a.hdf5", 20000)
    with pytest.raises(DataError, match=r"picture 3 of .*a\.hdf5 .* cannot be read"):
        bank[3]
    with pytest.raises(DataError, match=r"bank of pictures .* cannot be read"):
        PixelBank(tmp_path / "a.hdf5", "imgBrick")
    os.mkfifo(tmp_path / "b.hdf5")
    with pytest.raises(DataError, match="FIFO"):
        PixelBank(tmp_path / "b.hdf5", "imgBrick")
    (tmp_path / "a.hdf5").unlink()
    with pytest.raises(DataError, match="does not exist"):
        bank[0]


@pytest.mark.parametrize("number", [-1, 1, 0.5, None])
def test_pictures_are_asked_for_by_id_or_legal_number(number):
    with pytest.raises(DataError, match="numbers from 0 to 0"):
        Stimuli(["a"], PHOTO[None]).image(number)


@pytest.mark.parametrize("source", [None, 3, [1], Image.new("RGB", (0, 3))])
def test_sources_that_are_no_picture(source):
    with pytest.raises(DataError, match=r"legal are a path|at least one"):
        read_picture(source)
