"""Claims about voxel captions (Luo et al., BrainSCUBA, ICLR 2024), on simulated cortex and on Haxby's categories.

Margins were fixed before the captions were looked at: a prefix language model names the planted family of at least
90 % of the voxels that pass the gate and a planted member of at least 60 %; diverse beams name both families of at
least 80 % of mixed voxels, and more of them than plain beams; weights whose features are shuffled name families as
often as captions dealt out at random do (within .1); captions that keep to a corpus occur in it, every one, and say
where; in Haxby's slice the captions of voxels differ between house and face as their responses in runs that the
encoder never saw do (permutation test over voxels, p < .05).
"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

SEED = 11
N_VOXELS = 300


@pytest.fixture(scope="module")
def world():
    """Weights, truth and a bank of scenes that nobody saw, of a world and a cortex of their own."""
    from neuroenc.study import Study, example_config
    from neuroenc.study.stages.bank import training_texts

    sets = [f"seed={SEED}", "data.options.n_subjects=1", f"data.options.n_voxels={N_VOXELS}"]
    config = example_config("world", sets, "caption")

    def made(folder):
        study = Study(config, folder, progress=False).until("weights")
        return study.fitted, study.gate, study.unseen, training_texts(study)

    return made


@pytest.fixture(scope="module")
def fitted(world, tmp_path_factory):
    return world(tmp_path_factory.mktemp("steps"))


@pytest.fixture(scope="module")
def captioned(fitted):
    """Captions by decoder: plain beams, diverse beams, of shuffled weights, within a corpus."""
    from neuroenc import Captioner
    from neuroenc.captions import CorpusConstraint, load_captioner, shuffled_control
    from neuroenc.embedding import ImageEmbedder

    weights, gate, unseen, texts = fitted
    bank = ImageEmbedder("world", progress=False).embed(unseen)
    plain = load_captioner("world", device="cpu", beams=6, max_length=40)
    diverse = plain.with_options(groups=3, diversity="words", diversity_penalty=1.0)
    constraint = CorpusConstraint.from_captions(
        texts.captions, plain.encode, stop=plain.stop, vocabulary=plain.vocabulary, ids=texts.ids
    )
    inside = plain.with_options(constraint=constraint)
    coef, scores = weights.coef, weights.scores

    def captions(decoder, coef=coef):
        captioner = Captioner(bank, decoder, top=3, n_evidence=0, progress=False)
        return captioner.caption(coef, scores, gate=gate).captions

    return {
        "plain": captions(plain),
        "diverse": captions(diverse),
        "corpus": captions(inside),
        "shuffled": captions(plain, shuffled_control(coef, SEED)),
        "constraint": constraint,
        "decoder": plain,
        "texts": texts,
        "truth": weights.truth,
    }


def judged(captioned, name):
    from neuroenc.study.truth import judge_planted

    return judge_planted(captioned[name], captioned["truth"])


def test_planted_families_and_members_are_named(captioned):
    found = judged(captioned, "plain")
    assert len(found) > 100
    assert found["named_family"].mean() >= 0.9
    assert found["named_member"].mean() >= 0.6


def test_diverse_beams_name_both_families_of_mixed_voxels(captioned):
    plain, diverse = (judged(captioned, n).query("mixed") for n in ("plain", "diverse"))
    assert len(diverse) >= 10
    assert diverse["both"].mean() >= 0.8
    assert diverse["both"].mean() > plain["both"].mean() or plain["both"].mean() == 1.0


def test_shuffled_weights_name_families_by_chance(captioned):
    from neuroenc.study.truth import judge_planted

    truth, captions = captioned["truth"], captioned["shuffled"]
    real = judge_planted(captions, truth)["named_family"].mean()
    selective = np.flatnonzero(truth["family"].values != "")
    rng = np.random.default_rng(SEED)
    chance = []
    for _ in range(50):
        mixed = truth.copy(deep=True)
        order = rng.permutation(selective)
        for name in ("family", "second_family", "members", "mixed"):
            values = truth[name].values.copy()
            values[selective] = truth[name].values[order]
            mixed[name] = ("voxel", values)
        chance.append(judge_planted(captions, mixed)["named_family"].mean())
    assert abs(real - np.mean(chance)) < 0.1, (real, np.mean(chance))


def test_captions_of_a_corpus_are_in_it_and_say_where(captioned):
    constraint, decoder, texts = captioned["constraint"], captioned["decoder"], captioned["texts"]
    captions = captioned["corpus"]
    known = {t.rstrip(". ").casefold(): set() for t in texts.captions}
    for text, name in zip(texts.captions, texts.ids):
        known[text.rstrip(". ").casefold()].add(name)
    said = captions["caption"].str.rstrip(". ").str.casefold()
    assert said.isin(known).all()
    for text, ids in zip(said, captions["caption_id"]):
        assert set(ids.split(";")) <= known[text]
    assert min(constraint.provenance(decoder.encode(text))["count"].min() for text in captions["caption"]) >= 1


def test_captions_of_haxbys_slice_differ_as_the_responses_do(mirror, tmp_path):

    from neuroenc import Captioner
    from neuroenc.data.datasets._haxby2001 import CATEGORIES
    from neuroenc.study import Study, example_config

    config = example_config("haxby", command="caption")
    study = Study(config, tmp_path, mirror=mirror, progress=False).until("bank")
    embed, weights = study.captioner.embed_text, study.fitted
    captioner = Captioner(study.captioner.bank, study.captioner.decoder, top=1, n_evidence=0, progress=False)
    captions = captioner.caption(weights.coef, weights.scores, gate=study.gate).captions
    best = captions.set_index("voxel")["caption"]

    test = weights.rows[0].Y_test
    of = test.coords["stimulus"].values
    measured = test.values[of == "house"].mean(0) - test.values[of == "face"].mean(0)
    vectors = embed(best.tolist())
    house, face = (embed(list(CATEGORIES[c][1])).mean(0) for c in ("house", "face"))
    told = vectors @ (house / np.linalg.norm(house) - face / np.linalg.norm(face))
    y = measured[best.index.to_numpy()]
    rho = spearmanr(told, y).statistic
    rng = np.random.default_rng(SEED)
    null = np.array([spearmanr(rng.permutation(told), y).statistic for _ in range(999)])
    p = (1 + (null >= rho).sum()) / 1000
    sides = pd.Series(told).groupby(y > 0).mean()
    print(f"{len(best)} voxels, rho {rho:.3f}, p {p:.3f}; house side {sides[True]:.3f}, face side {sides[False]:.3f}")
    assert p < 0.05
    assert sides[True] > sides[False]
