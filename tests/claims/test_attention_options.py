"""Claims about options of the in-context model's attention, each trained in a small model and compared on its own case
with softmax, the whole support and the closed form (recipes: tests/support/attention_options.py).

Recipes and margins were fixed before the first run; R2 of noiseless responses, means over three training seeds (one for
positions other than none and T5). Figures in the reasons of what failed are measured with these. After the first run,
contexts, regions and hints were given three seeds instead of one, and one comparison was added: the closed form that
both forgets and doubts outlying trials, which wins where Titans had won against either alone. Where a closed form wins,
it is the default and the guide says so.
"""

import pytest
import torch

import attention_options as options

torch.set_num_threads(1)
pytestmark = pytest.mark.slow


@pytest.mark.xfail(reason="sigmoid .517, softmax .501: better by more than the margin")
def test_sigmoid_is_as_good_as_softmax():
    found = options.normalisers()
    assert abs(found["sigmoid"] - found["softmax"]) <= 0.01


@pytest.mark.xfail(reason="T5 .586, no positions .611, the others .577 to .588")
def test_positions_see_which_response_was_suppressed():
    found = options.positions()
    assert found["t5"] >= found["none"] + 0.03


@pytest.mark.xfail(reason="no positions .611, T5 .586, the closed form .725")
def test_positions_beat_the_closed_form_where_order_matters():
    found = options.positions()
    assert max(found[name] for name in options.POSITIONS) >= found["closed form"] + 0.02


def test_queries_find_what_is_not_linear():
    found = options.contexts()["exemplar", options.TRAINED]
    assert found["full"] >= found["closed form"] + 0.05


@pytest.mark.xfail(reason="queries .338, kernel ridge .364 at 32 trials; .375 and .812 at 512")
def test_queries_beat_kernel_ridge():
    found = options.contexts()["exemplar", options.TRAINED]
    assert found["full"] >= found["kernel ridge"] + 0.02


@pytest.mark.parametrize("context", ["landmarks", "chunks"])
@pytest.mark.parametrize("other", ["full", "averaged"])
@pytest.mark.xfail(reason="landmarks .344, chunks .375, the whole support .375, averaged .363")
def test_selected_blocks_win_on_exemplar_voxels_at_16_times_the_length(context, other):
    found = options.contexts()["exemplar", options.LONG]
    assert found[context] >= found[other] + 0.02


@pytest.mark.parametrize("context", ["landmarks", "chunks"])
def test_selected_blocks_lose_on_linear_voxels(context):
    found = options.contexts()["linear", options.LONG]
    assert found[context] < max(found["full"], found["averaged"])


@pytest.mark.parametrize("memory", ["titans", "gru", "attention"])
def test_memories_beat_the_static_closed_form_under_drift(memory):
    found = options.memories()["drift"]
    assert found[memory] >= found["closed form"] + 0.02


@pytest.mark.parametrize("memory", ["titans", "gru", "attention"])
def test_memories_lose_to_it_without(memory):
    found = options.memories()["still"]
    assert found[memory] < found["closed form"]


def test_a_memory_is_not_below_the_closed_form_that_forgets():
    found = options.memories()["drift"]
    assert found["titans"] >= found["closed form, forgets"] - 0.01


@pytest.mark.parametrize(
    "closed",
    [
        "closed form",
        "closed form, forgets",
        "closed form, robust",
        pytest.param(
            "closed form, robust, forgets",
            marks=pytest.mark.xfail(reason="Titans .569, the closed form that forgets and is robust .637"),
        ),
    ],
)
def test_a_memory_beats_closed_forms_where_two_nuisances_meet(closed):
    found = options.memories()["drift and outliers"]
    assert found["titans"] >= found[closed] + 0.02


def test_gates_of_the_trial_beat_fixed_ones():
    found = options.memories()["drift and outliers"]
    assert found["titans"] >= found["titans, fixed gates"] + 0.01


@pytest.mark.xfail(reason="outliers cost .226 (.707 to .481), calibration recovers .027")
def test_calibrated_heads_recover_half_of_what_outliers_cost():
    found = options.sinks()
    lost = found["clean"] - found["outliers"]
    assert found["chosen, outliers"] - found["outliers"] >= 0.5 * lost


def test_chosen_heads_are_better_than_random_ones():
    found = options.sinks()
    assert found["chosen, outliers"] > found["random, outliers"]


def test_calibration_changes_nothing_without_outliers():
    found = options.sinks()
    assert abs(found["chosen, clean"] - found["clean"]) <= 0.005


@pytest.mark.xfail(reason="the error grows by .0195 without the two best, by .0102 without two random ones: 1.9 times")
def test_the_error_grows_without_retrieval_heads():
    found = options.retrieval()
    assert found["top"] >= 3 * found["random"]


def test_a_region_helps_at_five_trials():
    found = options.regions()[5]
    assert found["injected"] >= found["plain"] + 0.05


@pytest.mark.xfail(reason="injected .518, the region's prior .762 at 5 trials (.526 with a flat intercept)")
def test_a_region_is_not_below_its_prior_in_closed_form():
    found = options.regions()[5]
    assert found["injected"] >= found["region's prior"] - 0.01


@pytest.mark.parametrize("hint", ["weights", "nearest", "statistics"])
def test_hints_help_beyond_the_trained_length(hint):
    found = options.hints()
    assert found[hint][256] >= found["None"][256] + 0.01
