"""Files give back exactly what was saved, and damaged ones say what is wrong with them."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroenc._util.errors import DataError
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
    text=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5), min_size=1, max_size=3
    ),
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
