"""Joint models as rows of a comparison: weights, the layers that voxels need, labels and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError
from neuroenc.encoders import StackedEncoder
from neuroenc.encoders.comparison import compare

from .conftest import driven, of_two_subjects, spaces

DRIVES = [{"a": 1.0}] * 6 + [{"b": 1.0}] * 6 + [{}] * 4
JOINT = {"stacked": ["a", "b", "c"], "banded": ["a", "b"]}


def run(features, Y, **options):
    return compare(features, ["linear"], Y, cv=2, n_bootstraps=20, progress=False, **options)


def test_joint_models_are_rows_and_tell_which_spaces_and_layers_drive_a_voxel(planted):
    features, Y = planted
    found = run(features, Y, joint=JOINT, ordered=True)
    assert found.cells[-2:] == ["all/stacked", "all/banded"]
    median = found.table().query("kind == 'all'").set_index("cell")["median_r"]
    assert median[["all/stacked", "all/banded"]].min() > median["a/linear"] + 0.2
    weights = found.joint_weights()
    assert weights.roi.values.tolist() == Y.roi.values.tolist()
    assert (weights.sel(cell="all/stacked").argmax("space")[:12] == np.repeat([0, 1], 6)).all()
    assert np.isnan(weights.sel(cell="all/banded", space="c")).all()
    partition, table = found.structured_partition()
    assert partition["first"].values[:12].tolist() == ["a"] * 6 + ["b"] * 6
    assert partition["last"].values[:12].tolist() == ["a"] * 6 + ["b"] * 6
    rows = table.set_index("group")
    assert rows.loc["b", ["mean_first", "mean_last"]].tolist() == [0.5, 0.5]
    assert (rows["first_low"] <= rows["mean_first"]).all()
    # Early and late stacks of all layers are the row's predictions.
    whole = found.scores["r2"].sel(cell="all/stacked")
    np.testing.assert_allclose(partition["early"].sel(layers="c"), whole, atol=1e-5)
    np.testing.assert_allclose(partition["late"].sel(layers="a"), whole, atol=1e-5)


@pytest.mark.slow
def test_a_row_equals_the_encoder_on_the_training_rows_of_each_fold(planted):
    features, Y = planted
    found = run(features, Y, joint={"stacked": ["a", "b"]})
    job, fitted = found._fits("all/stacked")[0]
    train, test = (
        {k: x.values[rows] for k, x in features.items() if k != "c"} for rows in (job.rows.train, job.rows.test)
    )
    peer = StackedEncoder(standardise=True).fit(train, Y.values[job.rows.train])
    np.testing.assert_allclose(fitted.predicted, peer.predict(test), atol=1e-5)
    assert found.structured_partition() is None
    assert "single:a" not in fitted.arrays


@pytest.mark.slow
def test_subjects_that_saw_other_stimuli_have_a_stack_each():
    features = spaces(120)
    Y = of_two_subjects(driven(features, DRIVES))
    found = run(features, Y, joint={"stacked": ["a", "b"]}, ordered=True)
    assert len(found._fits("all/stacked")) == 4
    partition, table = found.structured_partition()
    assert np.isfinite(partition["early"]).all()
    assert {"one", "two"} <= set(table["group"])


def test_refusals(planted):
    features, Y = planted
    with pytest.raises(ConfigError, match="unknown joint model 'stack'"):
        run(features, Y, joint={"stack": ["a", "b"]})
    with pytest.raises(ConfigError, match="two different feature spaces"):
        run(features, Y, joint={"stacked": ["a"]})
    with pytest.raises(ConfigError, match="unknown space of the banded model"):
        run(features, Y, joint={"banded": ["a", "bb"]})
