"""Claims about phrases that are taken out of captions, on a simulated cortex that nobody tuned on.

Margins were fixed before these captions were looked at: against captions as written, at most half of the phrases are
unsupported by best images and weights (which have no say in the choice), at most a third are false by what was planted;
families, members and both families of mixed voxels are named as often, and captions of voxels are no more alike. Of
captions as written, verdicts by predicted responses have precision and recall of at least .9, for true and for false
phrases. Captions of shuffled weights gain nothing: they name families as seldom as before (within .05).
"""

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

SEED = 11


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Captions as written and trimmed, their phrases with verdicts and truth, and those of shuffled weights."""
    from neuroenc.study import Study, example_config
    from neuroenc.study.stages.caption import captioned_weights
    from neuroenc.study.stages.check import make_checker, shuffled_captions
    from neuroenc.study.truth import judge_phrases

    sets = [f"seed={SEED}", "data.options.n_subjects=1", "data.options.n_voxels=300"]
    sets += ["captions.stability.folds=0", "captions.stability.bootstraps=0", "captions.stability.halves=0"]
    study = Study(example_config("world", sets, "caption"), tmp_path_factory.mktemp("steps"), progress=False)
    whole = study.until("caption")
    mixed = shuffled_captions(whole)
    done = whole.until("ground")
    coef, intercept = captioned_weights(whole.captions, whole.fitted)
    config = whole.config.captions
    config = config.model_copy(update={"grounding": config.grounding.model_copy(update={"trim": False})})
    sure = make_checker(
        whole.with_parts({"config": whole.config.model_copy(update={"captions": config})}), coef, intercept
    )
    signal = whole.subjects[0].truth["signal"].assign_coords(voxel=whole.fitted.voxels[0])

    def judged(captions, checker):
        return judge_phrases(checker.check(captions).phrases, signal, whole.stimuli.table)

    crossed, written, trimmed = sure.crossed(), whole.captions.captions, done.captions.captions
    return {
        "captions": {"written": written, "trimmed": trimmed, "mixed": mixed, "mixed trimmed": done.shuffled},
        "crossed": {"written": judged(written, crossed), "trimmed": judged(trimmed, crossed)},
        "responses": judged(written, sure),
        "truth": whole.fitted.truth,
        "embed": whole.captioner.embed_text,
    }


def share(frame, column, value):
    return float((frame[column] == value).mean())


def test_half_as_many_phrases_are_unsupported_and_a_third_as_many_are_false(told):
    before, after = told["crossed"]["written"], told["crossed"]["trimmed"]
    unsupported = [share(x, "verdict", "unsupported") for x in (before, after)]
    false = [share(x, "truth", "false") for x in (before, after)]
    assert before["voxel"].nunique() > 200
    assert unsupported[1] <= unsupported[0] / 2, unsupported
    assert false[1] <= false[0] / 3, false


@pytest.mark.parametrize("what", ["family_named", "member_named", "both_named"])
def test_what_was_planted_is_named_as_often(told, what):
    from neuroenc.study.truth import judge_planted, planted_summary

    before, after = (
        planted_summary(judge_planted(told["captions"][name], told["truth"]), "")[what]
        for name in ("written", "trimmed")
    )
    assert after >= before, (before, after)


def test_captions_of_voxels_are_no_more_alike(told):
    from neuroenc.study.stages.check import diversity_table

    named = {name: told["captions"][name] for name in ("written", "trimmed")}
    before, after = diversity_table(named, told["embed"], SEED)["semantic_variance"]
    assert after >= before, (before, after)


@pytest.mark.parametrize("what", ["supported", "unsupported"])
def test_verdicts_by_predicted_responses_are_right(told, what):
    from neuroenc.study.truth import checker_summary

    found = checker_summary(told["responses"])
    assert found[f"precision of {what}"] >= 0.9, found
    assert found[f"recall of {what}"] >= 0.9, found


def test_shuffled_weights_gain_nothing(told):
    from neuroenc.study.truth import judge_planted

    before, after = (
        judge_planted(told["captions"][name], told["truth"])["named_family"].mean()
        for name in ("mixed", "mixed trimmed")
    )
    assert after <= before + 0.05, (before, after)
