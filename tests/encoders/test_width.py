"""Layers by number of dimensions: nested components, choices that see training rows alone, what is refused."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import cheapest, layer_dim_sweep
from neuroenc.encoders._width import widths
from neuroenc.encoders.comparison import compare
from neuroenc.report import plot_layer_dims

IDS = [f"s{k}" for k in range(240)]
QUICK = {"cv": 3, "n_bootstraps": 40}


@pytest.fixture(scope="module")
def planted():
    """A late layer whose first four of 24 dimensions drive V4, whose first alone (of the early layer too) drives V1."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((240, 4))
    late = np.c_[3 * z, rng.standard_normal((240, 20))]
    early = np.c_[3 * z[:, :1], rng.standard_normal((240, 23))]
    layers = {k: make_features(x.astype("float32"), stimulus=IDS) for k, x in (("early", early), ("late", late))}
    Y = np.c_[z @ rng.standard_normal((4, 5)), z[:, :1] @ rng.standard_normal((1, 5))]
    Y += 0.7 * rng.standard_normal(Y.shape)
    responses = make_responses(Y.astype("float32"), stimulus=IDS, dim="stimulus", roi=["V4"] * 5 + ["V1"] * 5)
    return layers, responses


def test_components_are_nested_and_those_of_training_rows():
    rng = np.random.default_rng(1)
    A, T = rng.standard_normal((60, 10)) * np.arange(1, 11), rng.standard_normal((20, 10))
    small, large = widths(A, T, [3, 7], "pca", 0)
    expected = PCA(7).fit(A).transform(T)
    np.testing.assert_allclose(np.abs(large[1]), np.abs(expected), atol=1e-6)
    np.testing.assert_allclose(small[1], large[1][:, :3])
    assert [a.shape[1] for a, _ in widths(A, T, [3, 64], "pca", 0)] == [3, 10]
    np.testing.assert_array_equal(widths(A, T, [3], "prefix", 0)[0][0], A[:, :3])


def test_planted_widths_are_recovered(planted):
    layers, responses = planted
    sweep = layer_dim_sweep(layers, responses, dims=[1, 4, 16], reduce="prefix", **QUICK)
    assert sweep["score"].dims == ("layer", "dim", "voxel")
    assert sweep["region"].values.tolist() == ["all", "V1", "V4"]
    np.testing.assert_allclose(
        sweep["region_score"].sel(region="V1"), np.median(sweep["score"].values[..., 5:], axis=-1), atol=1e-6
    )
    found = cheapest(sweep)
    chosen = dict(zip(found["region"].values, zip(found["layer"].values, found["dim"].values)))
    assert chosen["V1"] == ("early", 1)
    assert chosen["V4"] == ("late", 4)
    assert (found["kept"].values > 0.9).all()
    by_dim = cheapest(sweep, share=0.3, first="dim")
    assert by_dim["dim"].sel(region="V4") <= 4
    figure = plot_layer_dims(sweep, found, regions=["V4", "V1"])
    assert len(figure.axes) == 2
    with pytest.raises(ConfigError, match="unknown region 'V2'"):
        plot_layer_dims(sweep, regions=["V2"])


def test_choices_do_not_look_at_rows_left_out(planted):
    layers, responses = planted
    plain = layer_dim_sweep(layers, responses, dims=[1, 4], reduce="pca", **QUICK)
    blurred = plain["fold_score"] * np.random.default_rng(0).uniform(-1, 1, plain["fold_score"].shape)
    other = plain.assign(fold_score=blurred)
    for name in ("layer", "dim", "fold_layer", "fold_dim"):
        np.testing.assert_array_equal(cheapest(plain)[name], cheapest(other)[name])
    assert np.abs(cheapest(plain)["score"] - cheapest(other)["score"]).max() > 0.05


def test_labels_count_above_chance():
    rng = np.random.default_rng(2)
    z = rng.standard_normal((300, 3))
    layers = {"early": np.c_[z[:, 0], rng.standard_normal((300, 9))], "late": np.c_[z, rng.standard_normal((300, 7))]}
    sweep = layer_dim_sweep(layers, {"one": z[:, 0] > 0, "all": z.sum(1) > 0}, dims=[1, 3], reduce="prefix", **QUICK)
    found = cheapest(sweep, share=0.9)
    assert list(zip(found["layer"].values, found["dim"].values)) == [("early", 1), ("late", 3)]
    # .7 and more of .95 is 74 % of the score and 45 % of what is above chance.
    assert float(sweep["chance"][0]) == 0.5


def test_a_comparison_gives_the_same_grid(planted):
    layers, responses = planted
    found = compare(
        layers, ["linear"], responses, layers=list(layers), dims=[1, 4], reduce="prefix", cv=3, n_bootstraps=40,
        progress=False,
    )  # fmt: skip
    sweep = found.layer_dims()
    assert found.cells == ["early/linear", "late/linear"]
    alone = layer_dim_sweep(layers, responses, dims=[1, 4], reduce="prefix", **QUICK)
    assert np.abs(sweep["region_score"] - alone["region_score"]).max() < 0.1
    chosen = cheapest(sweep)
    assert chosen["layer"].sel(region="V1").item() == "early"
    assert chosen["dim"].sel(region="V4").item() == 4
    assert compare(layers, ["linear"], responses, cv=3, n_bootstraps=40, progress=False).layer_dims() is None
    holes = responses.copy(data=responses.values.copy())
    holes[:60, :3] = np.nan
    part = compare(layers, ["linear"], holes, layers=["late"], dims=[4], cv=3, n_bootstraps=40, progress=False)
    assert np.isfinite(part.layer_dims()["score"]).all()
    with pytest.raises(ConfigError, match="did you mean 'late'"):
        compare(layers, ["linear"], responses, layers=["latte"], dims=[4], cv=3, progress=False)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"dims": [4, 1]}, r"must rise. Next step: dims=\[1, 4\]"),
        ({"dims": []}, "numbers of dimensions"),
        ({"dims": [0]}, "dims"),
        ({"dims": [1], "reduce": "pcs"}, "did you mean 'pca'"),
    ],
)
def test_what_is_refused(planted, how, said):
    with pytest.raises(ConfigError, match=said):
        layer_dim_sweep(*planted, **{**QUICK, **how})


def test_maps_have_no_first_dimensions():
    maps = {k: np.zeros((20, 3, 4, 4)) for k in "ab"}
    with pytest.raises(DataError, match="pooling='mean'"):
        layer_dim_sweep(maps, np.random.default_rng(0).standard_normal((20, 2)), dims=[1], reduce="prefix", **QUICK)
    with pytest.raises(DataError, match="a sweep has inner_score"):
        cheapest(make_features(np.zeros((2, 2)), stimulus=["a", "b"]).to_dataset(name="x"))
