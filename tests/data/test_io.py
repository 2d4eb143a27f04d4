"""Files give back exactly what was saved, and damaged ones say what is wrong with them."""

from __future__ import annotations

import os
import subprocess
import sys

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings, strategies as st

from neuroenc._core.errors import DataError
from neuroenc.data import load, make_features, save, zscore

ENDINGS = ("nc", "zarr")
both = pytest.mark.parametrize("ending", ENDINGS)


def same(left, right):
    """Values, names, dtypes, attributes and their Python types."""
    assert type(left) is type(right)
    assert left.identical(right)
    assert set(left.coords) == set(right.coords)
    for name in left.coords:
        # The width of text is that of the longest, not a property to keep.
        assert left[name].dtype == right[name].dtype or {left[name].dtype.kind, right[name].dtype.kind} == {"U"}, name
        assert left[name].dims == right[name].dims, name
    for key, value in right.attrs.items():
        assert type(left.attrs[key]) is type(value), key
        assert left.attrs[key] == value or value != value, key
    if isinstance(left, xr.DataArray):
        assert left.dtype == right.dtype
        assert left.name == right.name


# ---------------------------------------------------------------- nothing is lost


@both
def test_every_label_and_attribute_comes_back(responses, tmp_path, ending):
    z = zscore(responses)
    before = z.copy(deep=True)
    path = save(z, tmp_path / f"r.{ending}")
    same(load(path), before)
    same(z, before)
    assert load(path).attrs["provenance"] == before.attrs["provenance"]
    assert load(path).roi.values.tolist()[1:4] == ["V1;V2", "", "FFA;OFA"]


@both
def test_features_and_datasets_come_back(tmp_path, ending):
    x = make_features(np.arange(12).reshape(2, 3, 2), stimulus=["a", "ä漢😀"], token=["", "un", "deux"])
    same(load(save(x, tmp_path / f"x.{ending}")), x)
    scores = xr.Dataset(
        {"r": ("voxel", np.array([0.5, np.nan])), "chosen": ("voxel", [True, False]), "label": ("voxel", ["", "b"])},
        coords={"voxel": [3, 9]},
        attrs={"note": ""},
    )
    scores.r.attrs["units"] = "1"
    back = load(save(scores, tmp_path / f"s.{ending}"))
    same(back, scores)
    assert back.r.attrs == {"units": "1"}
    assert back.chosen.dtype == bool


@both
@pytest.mark.parametrize("value", [0, -9999, 9.96921e36, -32767, np.inf, -np.inf, np.nan, -0.0])
def test_no_number_is_taken_for_a_missing_one(tmp_path, ending, value):
    array = xr.DataArray(np.array([value, 1.0], np.float32), dims="voxel", name="r")
    back = load(save(array, tmp_path / f"x.{ending}"))
    assert back.values.tobytes() == array.values.tobytes()
    if np.isfinite(value) and abs(value) < 1e5:
        whole = array.astype(np.int64)
        same(load(save(whole, tmp_path / f"i.{ending}")), whole)


@both
def test_names_that_clash_and_no_name(tmp_path, ending):
    for name in (None, "voxel", "", 3, "a/b"):
        array = xr.DataArray([1.0, 2.0], dims="voxel", coords={"voxel": [4, 5], "values": 1.0}, name=name)
        same(load(save(array, tmp_path / f"n.{ending}")), array)


@both
def test_empty_arrays(responses, tmp_path, ending):
    for part in (responses[:0], responses[:, :0]):
        same(load(save(part, tmp_path / f"e.{ending}")), part)


@both
@pytest.mark.filterwarnings("ignore:The specified chunks separate")
def test_dask_arrays_are_written_by_block_and_read_lazily(responses, tmp_path, ending):
    blocks = []
    lazy = responses.copy(data=da.from_array(responses.values, chunks=((25, 35), (2, 3, 2))))
    lazy = lazy.copy(data=lazy.data.map_blocks(lambda x: (blocks.append(x.shape), x)[1], meta=np.empty((0, 0), "f4")))
    path = save(lazy, tmp_path / f"d.{ending}")
    assert max(blocks) < responses.shape
    same(load(path), responses)
    back = load(path, chunks={"presentation": 35, "voxel": 3})
    assert back.chunks == ((35, 25), (3, 3, 1))
    same(back.compute(), responses)


ATTRIBUTE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(codec="utf-8"), max_size=8),
)
NAME = st.one_of(
    st.sampled_from(["_FillValue", "units", "dtype", "scale_factor", "coordinates", "calendar", "a/b", "NAME", "é"]),
    st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=5),
)


@both
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    attrs=st.dictionaries(NAME, st.one_of(ATTRIBUTE, st.lists(ATTRIBUTE, max_size=3)), max_size=5),
    text=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5), min_size=1, max_size=3),
)
def test_any_attribute_and_any_text(tmp_path, ending, attrs, text):
    array = xr.DataArray(np.arange(len(text)), dims="n", coords={"label": ("n", np.array(text))}, attrs=attrs, name="x")
    array["label"].attrs.update(attrs)
    back = load(save(array, tmp_path / f"a.{ending}"))
    assert back.label.values.tolist() == array.label.values.tolist()
    for found in (back.attrs, back.label.attrs):
        assert repr(dict(sorted(found.items()))) == repr(dict(sorted(attrs.items())))


# ---------------------------------------------------------------- what cannot be kept is refused


@both
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.stack(both=("presentation", "voxel")), r"MultiIndex.*reset_index\('both'\)"),
        (lambda r: r.assign_attrs(a={"b": 1}), r"attribute 'a'.*dict.*json\.dumps"),
        (lambda r: r.assign_attrs(a=[[1], [2]]), "attribute 'a'"),
        (lambda r: r.assign_coords(t=("voxel", np.array([None] * 7))), "'t' holds None"),
        (lambda r: r.assign_coords(t=("voxel", np.zeros(7, "datetime64[ns]"))), "'t' has dtype datetime64"),
        (lambda r: r.assign_coords(t=("voxel", ["a\0b"] * 7)), "'t' holds text with a NUL"),
        (lambda r: r.values, "cannot save ndarray"),
    ],
)
def test_save_refuses(responses, tmp_path, ending, change, message):
    with pytest.raises(DataError, match=message):
        save(change(responses), tmp_path / f"r.{ending}")
    assert list(tmp_path.iterdir()) == []


def test_other_endings_are_named(responses, tmp_path):
    for call in (lambda p: save(responses, p), load):
        with pytest.raises(DataError, match=r"'r\.h5' ends in '\.h5'; legal endings are \.nc .* and \.zarr"):
            call(tmp_path / "r.h5")


# ---------------------------------------------------------------- interrupted saves


@both
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_interrupted_save_leaves_nothing_and_keeps_the_old_file(responses, tmp_path, ending, error):
    path = save(responses, tmp_path / f"r.{ending}")

    def stop(x, block_info=None):
        if block_info and block_info[0]["chunk-location"][0] == 2:
            raise error("the disk is full")
        return x

    data = da.from_array(-responses.values, chunks=(20, 7)).map_blocks(stop, meta=np.empty((0, 0), "f4"))
    with pytest.raises((DataError, error), match="the disk is full"):
        save(responses.copy(data=data), path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    same(load(path), responses)


@both
def test_saving_again_replaces(responses, tmp_path, ending):
    path = save(responses, tmp_path / f"r.{ending}")
    save(responses[:5], path)
    same(load(path), responses[:5])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# ---------------------------------------------------------------- damaged files


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.999])
def test_a_truncated_netcdf_says_so(responses, tmp_path, share):
    path = save(responses, tmp_path / "r.nc")
    size = int(share * path.stat().st_size)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError) as caught:
        load(path)
    message = str(caught.value)
    assert f"{path} begins as netCDF-4 but is truncated or damaged: {size:,} bytes" in message
    assert "Next step: copy or download it again" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bad\.nc is empty: 0 bytes"),
        (b"<html>please log in</html>", r"bad\.nc is not netCDF-4 \(first bytes b'<html>pl'\): 26 bytes"),
    ],
)
def test_other_content(tmp_path, content, message):
    (tmp_path / "bad.nc").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "bad.nc")


def test_netcdf_3_is_named(tmp_path):
    xr.DataArray([1.0], dims="n", name="x").to_netcdf(tmp_path / "old.nc", engine="scipy", format="NETCDF3_64BIT")
    with pytest.raises(DataError, match=r"old\.nc is netCDF 3 .*nccopy -4"):
        load(tmp_path / "old.nc")


@pytest.mark.parametrize("chunks", [None, {"presentation": 20}])
@pytest.mark.parametrize("array", ["responses", "roi"])
def test_a_zarr_store_that_lost_a_chunk(responses, tmp_path, array, chunks):
    path = save(responses.chunk({"presentation": 20}), tmp_path / "r.zarr")
    lost = sorted(p for p in (path / array).iterdir() if not p.name.startswith("."))
    lost[-1].unlink()
    with pytest.raises(DataError, match=rf"array '{array}' has {len(lost) - 1} of {len(lost)} chunks.*incomplete"):
        load(path, chunks=chunks)


def test_blocks_of_zeros_are_no_lost_chunks(responses, tmp_path):
    zeros = (responses * 0).chunk({"presentation": 20})
    assert (load(save(zeros, tmp_path / "z.zarr")).values == 0).all()


def test_a_damaged_zarr_store(responses, tmp_path):
    path = save(responses, tmp_path / "r.zarr")
    chunk = path / "responses" / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(DataError, match=r"r\.zarr \(\d+ files\) is damaged or not a zarr store"):
        load(path)
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(DataError, match=r"empty\.zarr \(0 files\) is damaged or not a zarr store"):
        load(tmp_path / "empty.zarr")


@both
def test_an_absent_file_names_its_neighbours(responses, tmp_path, ending):
    save(responses, tmp_path / f"responses.{ending}")
    with pytest.raises(DataError, match=rf"response\.{ending} does not exist; nearest.*responses\.{ending}"):
        load(tmp_path / f"response.{ending}")
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "no" / f"r.{ending}")


@both
def test_files_of_others(tmp_path, ending):
    other = xr.DataArray([1.0, 2.0], dims="n", coords={"n": ["a", ""]}, name="x", attrs={"k": 3}).to_dataset()
    write = other.to_netcdf if ending == "nc" else other.to_zarr
    write(tmp_path / f"o.{ending}", **({"engine": "h5netcdf"} if ending == "nc" else {"zarr_format": 2}))
    back = load(tmp_path / f"o.{ending}")
    assert isinstance(back, xr.DataArray)
    assert back.name == "x"
    assert back.n.values.tolist() == ["a", ""]
    assert back.attrs == {"k": 3}


# ---------------------------------------------------------------- machines as they are

# A limit on the size of files of a process of its own: a full disk without a disk.
_FULL = """
import resource, sys
import dask.array as da, numpy as np, xarray as xr
from neuroenc._core.errors import DataError
from neuroenc.data import load, save
values = np.random.default_rng(0).standard_normal((4000, 100)).astype("f4")
array = xr.DataArray(values, dims=("p", "voxel"), coords={"p": [f"s{k}" for k in range(4000)]})
lazy = array.copy(data=da.from_array(values, chunks=(1000, 100)))
for ending in ("nc", "zarr"):
    save(array[:3], f"{sys.argv[1]}/x.{ending}")
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
for ending, one in (("nc", array), ("nc", lazy), ("zarr", array), ("zarr", lazy)):
    try:
        save(one, f"{sys.argv[1]}/x.{ending}")
    except DataError as error:
        print(error)
    assert load(f"{sys.argv[1]}/x.{ending}").shape == (3, 100)
"""


def test_no_room_is_an_error_that_leaves_the_old_file(tmp_path):
    done = subprocess.run([sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert [line[: len(f"cannot write {tmp_path}/x.nc")] for line in done.stdout.splitlines()] == [
        *[f"cannot write {tmp_path}/x.nc"] * 2,
        *[f"cannot write {tmp_path}/x.zarr"[:-2]] * 2,
    ]
    assert done.stdout.count("it would be larger") == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.nc", "x.zarr"]


DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "bool", "U0", "U3", ">f4", ">i8"]
NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Z", "S", "C"]), max_size=4)


@both
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 3), max_size=2),
    label=st.sampled_from(DTYPES),
    names=st.lists(NAMES, min_size=4, max_size=4, unique=True),
    indexed=st.booleans(),
    data=st.data(),
)
def test_any_array_comes_back_as_it_was_or_is_refused(tmp_path, ending, dtype, shape, label, names, indexed, data):
    """Names of dimensions and coordinates, number formats, empty and scalar ones, coordinates without an index."""

    def drawn(kind, size):
        raw = data.draw(st.binary(min_size=8 * size, max_size=8 * size))
        if kind.startswith("U"):
            return np.array([raw[8 * k : 8 * k + 3].hex() for k in range(size)], dtype=str)
        if kind == "bool":
            return np.frombuffer(raw[:size], "u1") > 127
        return np.frombuffer(raw, np.dtype(kind))[:size]

    dims = names[: len(shape)]
    array = xr.DataArray(drawn(dtype, int(np.prod(shape, dtype=int))).reshape(shape), dims=dims, name=names[3])
    if dims:
        values = drawn("i4" if label == "f2" else label, shape[0])
        array = array.assign_coords({names[2]: (dims[0], values), dims[0]: np.arange(shape[0])})
        array = array if indexed else array.drop_indexes(dims[0])
    path = tmp_path / f"any.{ending}"
    used = {*array.dims, *array.coords}
    if any(not x.isprintable() or x != x.strip() or not x or x[0] == "." or "/" in x for x in used):
        with pytest.raises(DataError, match="cannot be the name"):
            save(array, path)
        return
    back = load(save(array, path))
    assert back.dims == array.dims
    assert back.name == array.name
    assert set(back.coords) == set(array.coords)
    assert set(back.xindexes) == set(array.xindexes)
    for one, other in ((back, array), *((back[x], array[x]) for x in array.coords)):
        assert one.dtype.newbyteorder("=") == other.dtype.newbyteorder("=") or one.dtype.kind == "U"
        assert one.values.tolist() == other.values.tolist() or np.array_equal(one.values, other.values, equal_nan=True)


@both
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.assign_coords({"a/b": ("voxel", np.arange(7))}), "'a/b' cannot be the name"),
        (lambda r: r.assign_coords({" ": ("voxel", np.arange(7))}), "' ' cannot be the name"),
        (lambda r: r.assign_coords({"a\nb": ("voxel", np.arange(7))}), "cannot be the name"),
        (lambda r: r.assign_coords({".zarray": ("voxel", np.arange(7))}), "cannot be the name"),
        (lambda r: xr.Dataset({3: ("voxel", [1.0])}), "3 cannot be the name"),
        (lambda r: r.rename(("a", "b")), "is a tuple"),
        (lambda r: r.assign_attrs({3: 1}), "attribute 3"),
        (lambda r: r.assign_coords(t=("voxel", ["a\ud800"] * 7)), "surrogate"),
        (lambda r: r.assign_coords(t=("voxel", np.array(["a\0"] * 7, object))), "NUL"),
        (lambda r: r.assign_coords(t=("voxel", np.array([b"a"] * 7))), "dtype"),
        (lambda r: r.astype(complex), "complex"),
        (lambda r: r.astype(np.longdouble), "float128|longdouble"),
        (lambda r: r.assign_attrs(a=b"x"), "bytes"),
    ],
)
def test_save_refuses_what_files_would_change(responses, tmp_path, ending, change, message):
    with pytest.raises(DataError, match=message):
        save(change(responses), tmp_path / f"x.{ending}")
    assert list(tmp_path.iterdir()) == []


@both
def test_a_blank_in_a_name_and_a_dimension_without_index_come_back(responses, tmp_path, ending):
    array = responses.assign_coords({"my label": ("voxel", np.arange(7))}).rename("\ud800")
    array = array.assign_coords(presentation=np.arange(60)).drop_indexes("presentation")
    same(load(save(array, tmp_path / f"x.{ending}")), array)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.nc")
    (tmp_path / "folder.nc").mkdir()
    (tmp_path / "file.zarr").write_text("x")
    for name, message in (("pipe.nc", "FIFO"), ("folder.nc", "folder"), ("file.zarr", "zarr store is a folder")):
        with pytest.raises(DataError, match=rf"{name}.*{message}"):
            load(tmp_path / name)


@both
def test_a_description_that_was_damaged_is_one_error(responses, tmp_path, ending):
    for mark in ("{", "[]", '{"attrs": 3, "kind": "Dataset"}', '{"attrs": {"x": {}}, "kind": "DataArray"}'):
        dataset = responses.to_dataset().assign_attrs(neuroenc_object=mark)
        path = tmp_path / f"x.{ending}"
        dataset.to_netcdf(path) if ending == "nc" else dataset.to_zarr(path, mode="w", zarr_format=2)
        with pytest.raises(DataError, match=rf"x\.{ending}"):
            load(path)


_KILLED = """
import os, shutil, sys
from neuroenc._core import files
files._exchange = lambda a, b: False
replace = os.replace
def killed(a, b):
    replace(a, b)
    os._exit(9)
os.replace = killed
with files.atomic_path(sys.argv[1], directory=True) as folder:
    shutil.copytree(sys.argv[1], folder, dirs_exist_ok=True)
"""


def test_a_store_that_was_being_replaced_is_read_whole(responses, tmp_path):
    """A kill between the two renames of a system that cannot swap: the new store stands, or the old."""
    path = save(responses, tmp_path / "r.zarr")
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False)
    assert done.returncode == 9
    assert not path.exists()
    same(load(path), responses)
    assert [p.name for p in tmp_path.iterdir()] == ["r.zarr"]
