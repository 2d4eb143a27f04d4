"""Claims about in-context encoders (Yu et al., BraInCoRL, NeurIPS 2025): with few trials of a new subject they beat
ridge, with many they do not lose to it; and the gain comes from what other subjects' voxels are like.

The shipped model was trained on simulated subjects of other worlds. Seeds and margins were fixed before the model was:
mean normalised explained variance at 20, 50 and 100 trials at least 1.3 times that of ridge, at 1000 at most .02 below
it; where voxels come from a prior of another kind, at most .03 from ridge whose penalty the evidence chooses without
any prior, at 50 and 100 trials. "Ridge" is the best of those that know the new subject only, at each size: a penalty
for each voxel or one for all, by cross-validation, or by the evidence. Against ridge that knows other subjects of the
same world too (empirical Bayes), the claim is that the model is not worse.
"""

import numpy as np
import pytest

from neuroenc.encoders import InContextEncoder, RidgeEncoder
from neuroenc.encoders.incontext import EmpiricalBayesRidge, WeightPrior, support_curve

SEED = 17
METHODS = {
    "in-context": InContextEncoder("world"),
    "ridge": RidgeEncoder(),
    "one penalty": RidgeEncoder(alpha_per_voxel=False),
    "no prior": EmpiricalBayesRidge(),
}
ALONE = ("ridge", "one penalty", "no prior")

pytestmark = pytest.mark.slow


def curve(sizes, *, others=1, **options):
    from neuroenc.study.incontext.tasks import world_tasks

    tasks = world_tasks(SEED, n_train_subjects=others, n_voxels=200, **options)
    subject, methods = tasks.test[0], METHODS
    if others > 1:
        prior = WeightPrior.from_responses([s.X for s in tasks.train], [s.Y for s in tasks.train])
        methods = {"in-context": METHODS["in-context"], "other subjects": EmpiricalBayesRidge(prior)}
    found = support_curve(
        methods,
        subject.X,
        subject.Y,
        subject.X_query,
        subject.Y_query,
        sizes=sizes,
        n_draws=2,
        seed=SEED,
        noise_ceiling=subject.noise_ceiling,
        progress=False,
    )
    ceiling = np.asarray(subject.noise_ceiling)
    clear = ceiling > 0.1
    values = found["explained_variance"].transpose("method", "size", "draw", "voxel").values[..., clear]
    means = (values / ceiling[clear]).mean(axis=(2, 3))
    return {str(m): dict(zip(sizes, row)) for m, row in zip(found["method"].values, means)}


@pytest.fixture(scope="module")
def known():
    return curve((20, 50, 100, 1000))


@pytest.mark.parametrize("size", [20, 50, 100])
def test_few_trials_of_a_new_subject(known, size):
    """.066/.155/.233 against .048/.102/.166 of the best ridge."""
    ours, ridge = known["in-context"][size], max(known[name][size] for name in ALONE)
    assert ours >= 1.3 * max(ridge, 0.0), known


LITTLE = pytest.mark.xfail(
    strict=True, reason=".066: subjects as alike as people share less than those of before (.21)"
)


@pytest.mark.parametrize("size", [pytest.param(20, marks=LITTLE), 50, 100])
def test_few_trials_explain_a_tenth(known, size):
    assert known["in-context"][size] > 0.1, known


def test_many_trials_of_a_new_subject(known):
    assert known["in-context"][1000] >= max(known[name][1000] for name in ALONE) - 0.02, known


def test_the_gain_vanishes_for_voxels_of_another_kind():
    null = curve((50, 100), novel_prior=True)
    for size in (50, 100):
        assert abs(null["in-context"][size] - null["no prior"][size]) <= 0.03, null


@pytest.fixture(scope="module")
def beside_others():
    return curve((20, 50, 100), others=3)


WORSE = pytest.mark.xfail(strict=True, reason=".083 against .094: with 20 trials the prior of its own world is better")


@pytest.mark.parametrize("size", [pytest.param(20, marks=WORSE), 50, 100])
def test_not_worse_than_the_prior_of_three_other_subjects(beside_others, size):
    assert beside_others["in-context"][size] >= beside_others["other subjects"][size], beside_others


def test_never_below_its_own_closed_form():
    """With its network silenced a model is its closed form; the shipped one must not lose to it, at any size."""
    from neuroenc.encoders.incontext import load_model
    from neuroenc.study.incontext.tasks import world_tasks

    subject = world_tasks(SEED, n_train_subjects=1, n_voxels=200).test[0]
    methods = {"shipped": InContextEncoder("world"), "closed": InContextEncoder(load_model("world").silence())}
    data = (subject.X, subject.Y, subject.X_query, subject.Y_query)
    found = support_curve(methods, *data, sizes=(20, 50, 100, 300, 1000), n_draws=2, seed=SEED, progress=False)
    means = found["explained_variance"].mean(["draw", "voxel"])
    assert (means.sel({"method": "shipped"}) >= means.sel({"method": "closed"}) - 0.005).all(), means
