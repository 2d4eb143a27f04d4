"""Spaces trained from captions: planted topics and word order, folders, resuming, and stimuli that were trained on."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from neuroenc import data, study
from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.cli._main import app
from neuroenc.data import Stimuli, simulate_world
from neuroenc.embedding import ImageEmbedder, TextEmbedder, train_space
from neuroenc.encoders import RidgeEncoder
from neuroenc.encoders.comparison import compare
from neuroenc.retrieval import OwnerQuery, mine_hard_negatives

QUIET = {"progress": False}
STATIC = {
    "bow": {},
    "ngrams": {},
    "ppmi": {"pooling": "mean"},
    "sgns": {"pooling": "mean", "epochs": 5, "batch_size": 256},
}


@pytest.fixture(scope="module")
def topics():
    """Captions of four topics, each of ten words of its own and ten that all share."""
    rng = np.random.default_rng(0)
    words = [[f"topic{t}word{n}" for n in range(10)] for t in range(4)]
    shared = [f"shared{n}" for n in range(10)]
    captions = [
        [" ".join([*rng.choice(words[n % 4], 4), *rng.choice(shared, 3)]) for _ in range(2)] for n in range(240)
    ]
    return Stimuli([f"s{n}" for n in range(240)], captions=captions), words


def purity(vectors, labels, k=3):
    """Share of the k nearest neighbours that have the same label."""
    unit = unit_rows(vectors)
    near = np.argsort(-(unit @ unit.T - 2 * np.eye(len(unit))), axis=1)[:, :k]
    return float((labels[near] == labels[:, None]).mean())


@pytest.mark.parametrize("kind", ["ppmi", "sgns"])
def test_neighbours_of_words_recover_planted_topics(kind, topics, tmp_path):
    stimuli, words = topics
    space = train_space(kind, stimuli, tmp_path / "s", dims=8, **STATIC[kind], **QUIET)
    labels = np.repeat(np.arange(4), 10)
    vectors = space.embed([w for several in words for w in several]).values
    assert purity(vectors, labels) >= 0.9
    assert purity(vectors, np.random.default_rng(0).permutation(labels)) < 0.5


@pytest.mark.parametrize("kind", STATIC)
def test_captions_lie_with_their_topic(kind, topics, tmp_path):
    stimuli, _ = topics
    space = train_space(kind, stimuli, tmp_path / "s", dims=8, **STATIC[kind], **QUIET)
    found = space.embed_captions(stimuli)
    assert found.shape == (240, 8)
    assert space.embed(["shared1"]).attrs["weights"] == kind
    assert purity(found.values, np.arange(240) % 4, 5) >= 0.9


def test_frequent_words_count_less_with_sif(topics, tmp_path):
    stimuli, _ = topics
    text, other = "shared1 shared2 shared3 topic0word1", "shared1 shared2 shared3 topic1word1"
    likeness = {}
    for pooling in ("mean", "sif"):
        space = train_space("ppmi", stimuli, tmp_path / pooling, dims=8, pooling=pooling, **QUIET)
        a, b = space.embed([text, other]).values
        likeness[pooling] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert likeness["sif"] < likeness["mean"] - 0.1


def test_no_reduction_gives_a_feature_for_each_word(topics, tmp_path):
    stimuli, _ = topics
    space = train_space("bow", stimuli, tmp_path / "s", dims=0, **QUIET)
    found = space.embed(["topic0word1 topic0word1 topic2word3"]).values[0]
    assert len(found) == 50
    assert np.count_nonzero(found) == 2
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    with pytest.warns(UserWarning, match="1 of 1 texts have no word"):
        assert not space.embed(["unheard of"]).values.any()


@pytest.mark.parametrize(
    ("kind", "settings", "match"),
    [
        ("bag", {}, "bow"),
        ("bow", {"dim": 3}, "dims"),
        ("bow", {"pooling": "sif"}, "ppmi, sgns"),
        ("bow", {"dims": 1000}, "480"),
        ("grounded", {"dims": 7}, "even"),
        ("ppmi", {"images": "folder"}, "ranked"),
        ("sgns", {"soup": 9, "epochs": 2}, "soup"),
        ("ranked", {"tower": "lstm"}, "gru"),
    ],
)
def test_bad_settings_are_refused(kind, settings, match, topics, tmp_path):
    with pytest.raises((ConfigError, DataError), match=match):
        train_space(kind, topics[0], tmp_path / "s", **settings, **QUIET)


def test_a_table_a_file_and_stimuli_give_the_same_space(topics, tmp_path):
    stimuli, _ = topics
    rows = [(i, c) for i, several in zip(stimuli.ids, stimuli.captions) for c in several]
    table = pd.DataFrame(rows, columns=["stimulus", "caption"])
    table.to_csv(tmp_path / "captions.csv", index=False)
    found = [
        train_space("bow", source, tmp_path / str(n), dims=5, **QUIET).embed(["shared1 topic1word1"]).values
        for n, source in enumerate((stimuli, table, tmp_path / "captions.csv"))
    ]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    with pytest.raises(DataError, match="row 3"):
        train_space("bow", pd.DataFrame([("a", "x"), ("b", "y"), ("c", " ")], columns=table.columns), tmp_path / "e")


class TestTrainedOn:
    """A space knows its stimuli, by caption, by id and by picture."""

    def test_by_caption_and_id(self, topics, tmp_path):
        stimuli, _ = topics
        held = stimuli.ids[:40]
        space = train_space("bow", stimuli, tmp_path / "s", dims=5, held_out=held, **QUIET)
        seen = space.embed_captions(stimuli)["trained_on"].values
        assert not seen[:40].any()
        assert seen[40:].all()
        assert "trained_on" not in space.embed_captions(stimuli.sel(held)).coords
        renamed = Stimuli(["x", "y"], captions=[list(stimuli.captions[50]), ["shared1"]])
        assert space.embed_captions(renamed)["trained_on"].values.tolist() == [True, False]
        # Under the same id one caption is enough, whatever its case and full stop.
        more = Stimuli([stimuli.ids[50]], captions=[["never shared1", stimuli.captions[50][0].upper() + "."]])
        assert space.embed_captions(more)["trained_on"].all()

    def test_captions_of_others_that_are_equal_are_held_out_too(self, tmp_path):
        captions = [["a dog", "a pet"], ["a dog", "a cat on a mat"], ["a house", "a hut"]]
        stimuli = Stimuli(["a", "b", "c"], captions=captions)
        space = train_space("bow", stimuli, tmp_path / "s", dims=0, min_count=1, held_out=["a"], **QUIET)
        assert "dog" not in space.backbone.record["words"]
        assert space.backbone.record["captions"] == 3

    def test_comparisons_and_runs_refuse_it(self, topics, tmp_path):
        stimuli, _ = topics
        rng = np.random.default_rng(0)
        Y = data.make_responses(rng.standard_normal((240, 3)), stimulus=stimuli.ids, dim="stimulus")
        other = data.make_features(rng.standard_normal((240, 4)), stimulus=stimuli.ids)
        space = train_space("bow", stimuli, tmp_path / "s", dims=5, held_out=stimuli.ids[:60], **QUIET)
        X = space.embed_captions(stimuli)
        with pytest.raises(DataError, match=r"words.*180 of 240"):
            compare({"words": X, "other": other}, ["linear"], Y, cv=3, n_bootstraps=2, **QUIET)
        first = [(np.arange(60, 240), np.arange(60))]
        compare({"words": X}, ["linear"], Y, cv=first, n_bootstraps=2, **QUIET)
        encoder = RidgeEncoder().fit(X.values[60:], Y[60:])
        study.evaluate(encoder, X[:60], Y[:60], permutations=0)
        with pytest.raises(DataError, match="5 of 65"):
            study.evaluate(encoder, X[:65], Y[:65], permutations=0)
        analysis = study.Study(features={"words": X}, responses=Y, progress=False)
        with pytest.raises(DataError, match=r"features.words"):
            analysis.until("score")


def test_the_command_and_a_config(tmp_path, topics):
    stimuli, _ = topics
    rows = [(i, c) for i, several in zip(stimuli.ids, stimuli.captions) for c in several]
    pd.DataFrame(rows, columns=["stimulus", "caption"]).to_csv(tmp_path / "captions.csv", index=False)
    pd.DataFrame({"stimulus": stimuli.ids[:80]}).to_csv(tmp_path / "test.csv", index=False)
    command = ["space", "train", "ppmi", "--captions", f"{tmp_path}/captions.csv", "--out", f"{tmp_path}/words"]
    command += ["--held-out", f"{tmp_path}/test.csv", "--set", "dims=6", "--set", "pooling=mean", "--quiet"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "320 captions of 160 stimuli" in done.output
    assert "dims 6" in CliRunner().invoke(app, ["space", "info", f"{tmp_path}/words"]).output
    wrong = CliRunner().invoke(app, [*command, "--set", "widow=3"])
    assert wrong.exit_code == 2
    assert "window" in wrong.output
    # The planted responses are of topics, which the space must bring.
    rng = np.random.default_rng(0)
    onehot = np.eye(4)[np.arange(240) % 4]
    Y = data.make_responses(
        onehot @ rng.standard_normal((4, 5)) + 0.3 * rng.standard_normal((240, 5)), stimulus=stimuli.ids, dim="stimulus"
    )
    data.save(Y, tmp_path / "Y.nc")
    held = ", ".join(f'"{i}"' for i in stimuli.ids[:80])
    (tmp_path / "my.toml").write_text(
        f'[data]\nresponses = "Y.nc"\ncaptions = "captions.csv"\nzscore = "none"\n[features.words]\nkind = "text"\n'
        f'model = "words"\n[evaluation]\nscheme = "test"\ntest_ids = [{held}]\npermutations = 0\n'
    )
    from neuroenc.study.read import read_config

    config = read_config(tmp_path / "my.toml")
    assert config.features["words"].kind == "captions"
    assert config.features["words"].model == f"{tmp_path}/words"
    scored = study.Study(config, progress=False).until("score")
    assert float(scored.scores["r"].median()) > 0.8


@pytest.fixture(scope="module")
def orders():
    """Captions whose words are the same and whose order tells the stimulus, and others whose words do."""
    names = ["dog", "cat", "cow", "fox", "owl", "pig", "rat", "bee"]
    pairs = [(a, b) for a in names for b in names if a != b]
    verbs = ["chases", "follows"]
    captions = [[f"a {a} {v} a {b}" for v in verbs] + [f"the {a} {v} the {b}" for v in verbs] for a, b in pairs]
    return Stimuli([f"{a}-{b}" for a, b in pairs], captions=captions)


def found_first(space, stimuli):
    """Share of last captions that find their stimulus among the means of the others."""
    others = space.embed_captions(Stimuli(stimuli.ids, captions=[c[:-1] for c in stimuli.captions])).values
    asked = space.embed([c[-1] for c in stimuli.captions]).values
    return float(((asked @ unit_rows(others).T).argmax(1) == np.arange(len(stimuli))).mean())


HOW = {"dims": 32, "epochs": 15, "batch_size": 16, "loss": "info_nce"}


@pytest.mark.parametrize("kind", ["bow", "ngrams", "gru", "grounded"])
def test_towers_read_words_and_all_but_bow_their_order(kind, orders, tmp_path):
    settings = HOW if kind == "grounded" else {**HOW, "tower": kind}
    space = train_space("grounded" if kind == "grounded" else "ranked", orders, tmp_path / "s", **settings, **QUIET)
    found = found_first(space, orders)
    # Of two stimuli with the same words, no bag of words can tell which.
    assert found <= 0.6 if kind == "bow" else found >= 0.9


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ranked", {"tower": "ngrams", "loss": "hinge", "batches": "hard"}),
        ("ranked", {"tower": "ngrams", "mix": "pairs", "soup": 2}),
        ("nested", {"base": "world", "layers": ["block1", "block0"], "mix": "pairs", "soup": 2}),
    ],
)
def test_a_killed_training_ends_where_it_would_have_ended(kind, settings, orders, tmp_path, monkeypatch):
    from neuroenc._core.checkpoints import Checkpoint

    how = {**HOW, "epochs": 4, **settings}
    miner = partial(mine_hard_negatives, k=2, filters=[OwnerQuery(0.95)])
    whole = train_space(kind, orders, tmp_path / "whole", miner=miner, **how, **QUIET)
    save, epochs = Checkpoint.save, []

    def stop(self, model, optimiser, state, best=None):
        save(self, model, optimiser, state, best)
        epochs.append(state["epoch"])
        if epochs == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", stop)
    monkeypatch.setattr("neuroenc._core.training.EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train_space(kind, orders, tmp_path / "again", miner=miner, **how, **QUIET)
    again = train_space(kind, orders, tmp_path / "again", miner=miner, **how, **QUIET)
    assert epochs == [1, 2, 3]
    texts = [c for several in orders.captions for c in several]
    assert np.array_equal(whole.embed(texts).values, again.embed(texts).values)
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def test_pictures_and_texts_meet_in_one_space(tmp_path):
    world = simulate_world(300, seed=11)
    train, test = world.sel(world.ids[:250]), world.sel(world.ids[250:])
    how = {"image_model": "world", "images": True, "dims": 64, "loss": "info_nce", "epochs": 15}
    space = train_space("ranked", train, tmp_path / "s", **how, **QUIET)
    images = ImageEmbedder(str(tmp_path / "s"), **QUIET).embed(test).values
    texts = space.embed([c[0] for c in test.captions]).values
    place = (np.argsort(-(texts @ images.T), axis=1) == np.arange(50)[:, None]).argmax(1)
    assert (place < 10).mean() > 0.6
    assert np.linalg.norm(images, axis=1) == pytest.approx(1, abs=1e-5)
    # Pictures are known again under another id.
    renamed = Stimuli([f"x{n}" for n in range(60)], world.images[200:260])
    assert ImageEmbedder(str(tmp_path / "s"), **QUIET).embed(renamed)["trained_on"].values.sum() == 50
    train_space("bow", train, tmp_path / "texts", dims=8, **QUIET)
    with pytest.raises(ConfigError, match="without pictures"):
        ImageEmbedder(str(tmp_path / "texts"))


def test_a_path_without_a_space_is_told(tmp_path):
    with pytest.raises(DataError, match=r"space\.json"):
        TextEmbedder(str(tmp_path))


SMALL = {"image_model": "world", "layer": "layer1", "height": 64, "width": 64, "size": 9, "dims": 32, "variants": 1}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Captions of a few words, a head on pictures of them, and captions that were held out."""
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    texts = [" ".join("".join(rng.choice(letters, 5)) for _ in range(3)) for _ in range(200)]
    stimuli = Stimuli([f"s{n}" for n in range(200)], captions=[[t] for t in texts])
    folder = tmp_path_factory.mktemp("rendered") / "s"
    held = stimuli.ids[:50]
    return train_space("rendered", stimuli, folder, held_out=held, epochs=10, **SMALL, **QUIET), stimuli, texts[:50]


def typos_found(embedder, texts):
    """Share of misspelt texts that find theirs."""
    unit = [unit_rows(embedder.embed(some).values) for some in (texts, data.perturb_text(texts))]
    return float(((unit[1] @ unit[0].T).argmax(1) == np.arange(len(texts))).mean())


class TestRendered:
    """A head over pictures of texts."""

    def test_misspelt_texts_find_theirs_and_those_held_out_took_no_part(self, rendered, tmp_path):
        space, stimuli, held = rendered
        plain = train_space("rendered", stimuli, tmp_path / "plain", epochs=1, learning_rate=1e-9, **SMALL, **QUIET)
        assert typos_found(space, held) >= typos_found(plain, held) + 0.1
        found = space.embed_captions(stimuli)
        assert not found["trained_on"][:50].any()
        assert found["trained_on"][50:].all()
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)

    def test_batches_do_not_matter_and_the_folder_reads_pictures_too(self, rendered):
        space, _, held = rendered
        few = TextEmbedder(space.model, batch_size=7, cache=False, **QUIET).embed(held)
        np.testing.assert_allclose(few, space.embed(held), atol=1e-5)
        pictures = data.render_text(held, size=9, shape=(64, 64))
        seen = ImageEmbedder(space.model, cache=False, **QUIET).embed(pictures)
        np.testing.assert_allclose(seen, few, atol=1e-5)

    def test_what_is_too_long_is_told_once(self, rendered):
        with pytest.warns(UserWarning, match="1 of 2 texts are longer than the 64 pixels of height") as told:
            rendered[0].embed(["few", "letter " * 40])
        assert len(told) == 1

    def test_another_font_or_network_is_refused(self, rendered, monkeypatch):
        from neuroenc.embedding.spaces import _rendered

        draw = _rendered.render_text
        monkeypatch.setattr(_rendered, "render_text", lambda *args, **how: draw(*args, **{**how, "size": 10}))
        with pytest.raises(DataError, match="another 'rendered:world'"):
            TextEmbedder(rendered[0].model)

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"layer": "layer9"}, "layer1"),
            ({"typos": 2.0}, "typos"),
            ({"height": 4}, "height"),
            ({"tower": "bow"}, "ranked"),
            ({"images": True}, "captions only"),
        ],
    )
    def test_bad_settings_are_refused(self, settings, match, topics, tmp_path):
        with pytest.raises((ConfigError, DataError), match=match):
            train_space("rendered", topics[0], tmp_path / "s", **{**SMALL, **settings}, **QUIET)

    def test_a_killed_training_ends_where_it_would_have_ended(self, rendered, tmp_path, monkeypatch):
        from neuroenc._core.checkpoints import Checkpoint

        space, stimuli, held = rendered
        save = Checkpoint.save

        def stop(self, model, optimiser, record, *more):
            save(self, model, optimiser, record, *more)
            raise KeyboardInterrupt

        monkeypatch.setattr("neuroenc._core.training.EVERY", 0.0)
        monkeypatch.setattr(Checkpoint, "save", stop)
        how = {"held_out": stimuli.ids[:50], "epochs": 10, **SMALL, **QUIET}
        with pytest.raises(KeyboardInterrupt):
            train_space("rendered", stimuli, tmp_path / "s", **how)
        monkeypatch.setattr(Checkpoint, "save", save)
        again = train_space("rendered", stimuli, tmp_path / "s", **how)
        np.testing.assert_allclose(again.embed(held), space.embed(held), atol=1e-5)
