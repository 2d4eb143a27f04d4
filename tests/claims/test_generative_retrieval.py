"""Claims about retrieval by generated n-grams (SEAL, UGR, CorpusBrain), on captions of the simulated world.

Scenes of one seed have three captions in the corpus, and a fourth that asks: as its embedding by the world's CLIP,
which a small decoder turns into n-grams, or as its own words. Margins were fixed before anything was trained on this
seed:

- CorpusBrain: a retriever trained on pseudo queries of the corpus finds the image of a held-out caption in its first
  ten at least .15 more often than the same one untrained; queries dealt out at random find it at chance.
- UGR: with prompts of each kind (words, learned vectors, both), one model of four levels has an R-precision at least
  .05 above the same model without prompts, at every level.
- CorpusBrain, kinds: without one kind of pseudo query (and the pairs that it gives), the mean of image hits at ten and
  R-precision of categories is at least .02 lower.
- CorpusBrain, few labels: 50 labelled pairs of other scenes find at least .15 more images at ten after pretraining on
  pseudo queries than without, and at least .02 more than pretraining alone.
- SEAL: n-grams beat single tokens of the same model at ten, and BM25 on the words of the captions; weighing by the
  corpus beats the language model's probabilities alone; beta = .8 is no worse than 0.

One thing was changed after a first look: targets of the level "caption" began where their caption does, and are now
n-grams anywhere in it (R-precision .22 before, .31 after). Of 250 captions .880 then find their image among the first
ten of 500: untrained .040, single tokens .876, the model alone .820, beta = 0 .868, BM25 on their words .920.
"""

import numpy as np
import pytest
from scipy.stats import binomtest

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

SEED, SCENES, ASKED = 21, 500, 250
LEVELS = ("image", "caption", "phrase", "category")
KINDS = ("inner", "lead", "link")
TRAINING = {
    "batch_size": 64,
    "schedule": "cosine",
    "clip": 1.0,
    "noise": 0.02,
    "seed": SEED,
    "progress": False,
}


class Study:
    """A corpus, the captions that ask, and their embeddings."""

    def __init__(self):
        from neuroenc.captions import find_phrases
        from neuroenc.data.simulate import FAMILIES, MEMBERS, simulate_world
        from neuroenc.embedding import TextEmbedder
        from neuroenc.retrieval import CaptionCorpus

        world = simulate_world(SCENES, seed=SEED)
        members = [m for f in FAMILIES for m in MEMBERS[f]]
        shown = {i: [m for m in members if world.table.loc[i, f"member_{m}"] > 0] for i in world.ids}
        self.categories = {k: v for k, v in shown.items() if v}
        kept = [(c, i) for i, several in zip(world.ids.tolist(), world.captions) for c in several[:-1]]
        self.corpus = CaptionCorpus(
            [c for c, _ in kept],
            [i for _, i in kept],
            self.categories,
            lambda text: find_phrases([text], "rules")["phrase"].tolist(),
        )
        every = [several[-1] for several in world.captions]
        self.queries, self.images = every[:ASKED], world.ids.tolist()[:ASKED]
        clip = TextEmbedder("world", progress=False, device="cpu", cache=False)
        self.known = {}
        self.embed = lambda texts: clip.embed(list(texts)).values
        vectors = self.embed(every)
        self.embedded = vectors[:ASKED]
        self.labelled, self.others = every[ASKED : ASKED + 50], world.ids.tolist()[ASKED : ASKED + 50]
        self.mean = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(axis=0)

    def decoder(self):
        from neuroenc.captions import PrefixDecoder, make_language_model

        lm, tokenizer = make_language_model(self.corpus.captions, width=96, layers=2, vocabulary=600, seed=SEED)
        return PrefixDecoder(
            lm,
            tokenizer,
            self.embedded.shape[1],
            prefix_length=4,
            normalise=True,
            centre=True,
            stop="<end>",
            batch_size=100,
            seed=SEED,
            device="cpu",
        )

    def trained(self, prompt, kinds=KINDS):
        from neuroenc.captions import train_retriever
        from neuroenc.retrieval import pseudo_queries

        decoder = self.decoder()
        pairs = pseudo_queries(self.corpus, kinds, levels=LEVELS, per_image=2, seed=SEED)
        train_retriever(decoder, pairs, self.embed, prompt=prompt, epochs=2, lr=2e-3, warmup=50, **TRAINING)
        return decoder

    def of_kind(self, prompt):
        """The retriever with a kind of prompt, trained once."""
        if prompt not in self.known:
            self.known[prompt] = self.trained(prompt)
        return self.known[prompt]

    def tuned(self, decoder, epochs, lr):
        """The decoder after 50 labelled pairs of scenes that are not asked for."""
        from neuroenc.captions import train_retriever
        from neuroenc.retrieval import labelled_queries

        pairs = labelled_queries(self.corpus, self.labelled, self.others, levels=LEVELS)
        train_retriever(decoder, pairs, self.embed, epochs=epochs, lr=lr, warmup=0, **TRAINING)
        return decoder

    def both(self, decoder):
        """Mean of image hits at ten and R-precision of categories."""
        categories = self.r_precision(self.found(decoder, "category"), "category")
        return (self.hit(self.found(decoder)) + categories) / 2

    def found(self, decoder, level="image", **options):
        from neuroenc.captions import NGramRetriever

        search = NGramRetriever(self.corpus, decoder, level=level, **options).search
        return self.answers(search(self.embedded, mean=self.mean))

    def answers(self, frame):
        """Ids found for each query, the best first."""
        out = [[] for _ in self.queries]
        for query, name in zip(frame["query"], frame["id"]):
            out[query].append(name)
        return out

    def truth(self, level):
        out = []
        for image in self.images:
            rows = self.corpus.rows_of(image)
            out.append(
                {
                    "image": {image},
                    "caption": {self.corpus.caption_ids[r] for r in rows},
                    "phrase": {p for r in rows for p in self.corpus.phrases_of(r)},
                    "category": set(self.categories.get(image, ())),
                }[level]
            )
        return out

    def hit(self, found, k=10, level="image"):
        return np.mean([bool(set(f[:k]) & t) for f, t in zip(found, self.truth(level)) if t])

    def r_precision(self, found, level):
        return np.mean([len(set(f[: len(t)]) & t) / len(t) for f, t in zip(found, self.truth(level)) if t])


@pytest.fixture(scope="module")
def study():
    return Study()


@pytest.fixture(scope="module")
def prompted(study):
    return study.of_kind("discrete")


@pytest.fixture(scope="module")
def full(study, prompted):
    return study.found(prompted)


def test_pseudo_queries_teach_a_retriever(study, full):
    untrained = study.hit(study.found(study.decoder()))
    assert study.hit(full) >= untrained + 0.15, (study.hit(full), untrained)


def test_queries_of_other_scenes_find_by_chance(study, full):
    other = np.random.default_rng(SEED).permutation(ASKED)
    chance = 10 / SCENES
    assert study.hit([full[k] for k in other]) < chance + 4 * np.sqrt(chance / ASKED)


#: R-precision of each level with each kind of prompt, and without.
MEASURED = {
    "none": (0.536, 0.371, 0.630, 0.970),
    "discrete": (0.492, 0.313, 0.630, 0.953),
    "continuous": (0.484, 0.317, 0.644, 0.970),
    "hybrid": (0.504, 0.333, 0.627, 0.962),
}


def told_apart(kind, level):
    """A kind of prompt and a level, marked where the claim was measured to fail."""
    at = LEVELS.index(level)
    with_it, without = MEASURED[kind][at], MEASURED["none"][at]
    why = f"R-precision {with_it:.3f} with {kind} prompts, {without:.3f} without"
    marks = [] if with_it >= without + 0.05 else [pytest.mark.xfail(strict=True, reason=why)]
    return pytest.param(kind, level, marks=marks, id=f"{kind}-{level}")


@pytest.mark.parametrize(
    ("kind", "level"), [told_apart(k, level) for k in ("discrete", "continuous", "hybrid") for level in LEVELS]
)
def test_prompts_tell_one_model_what_is_asked_for(study, kind, level):
    told = study.r_precision(study.found(study.of_kind(kind), level), level)
    untold = study.r_precision(study.found(study.of_kind("none"), level), level)
    assert told >= untold + 0.05, (told, untold)


@pytest.mark.parametrize(
    "kind",
    [
        "inner",  # .917 with all kinds, .772 without this one
        "lead",  # .890 without
        pytest.param(
            "link", marks=pytest.mark.xfail(strict=True, reason=".917 with links, .925 without: they answer loosely")
        ),
    ],
)
def test_every_kind_of_pseudo_query_teaches_something(study, prompted, kind):
    without = study.both(study.trained("discrete", [k for k in KINDS if k != kind]))
    assert study.both(prompted) >= without + 0.02, (study.both(prompted), without)


@pytest.fixture(scope="module")
def tuned(study, prompted, tmp_path_factory):
    from neuroenc.captions import PrefixDecoder

    # As a user would: the pretrained one is saved, and goes on from its folder.
    folder = prompted.save(tmp_path_factory.mktemp("pretrained"))
    return study.hit(study.found(study.tuned(PrefixDecoder.load(folder, device="cpu", batch_size=100), 5, 5e-4)))


def test_few_labels_are_worth_more_after_pretraining(study, tuned):
    alone = study.hit(study.found(study.tuned(study.decoder(), epochs=20, lr=2e-3)))
    assert tuned >= alone + 0.15, (tuned, alone)


@pytest.mark.xfail(
    strict=True,
    reason=".744 after 50 labelled pairs, .880 before them: the retriever forgets scenes that no label names",
)
def test_few_labels_add_to_pretraining(study, tuned, full):
    assert tuned >= study.hit(full) + 0.02, (tuned, study.hit(full))


@pytest.mark.xfail(strict=True, reason=".880 beside .876 of 250: one query, no difference")
def test_ngrams_beat_single_tokens_of_the_same_model(study, prompted, full):
    single = study.found(prompted, longest=1, beams=200)
    ours, theirs = ([bool(set(f[:10]) & t) for f, t in zip(found, study.truth("image"))] for found in (full, single))
    won = sum(a and not b for a, b in zip(ours, theirs))
    lost = sum(b and not a for a, b in zip(ours, theirs))
    # More queries won than lost is not enough: one of 250 would be.
    assert binomtest(won, max(1, won + lost), alternative="greater").pvalue < 0.05, (won, lost)


@pytest.mark.xfail(strict=True, reason=".880 beside .920: BM25 reads the words, the model an embedding of them")
def test_ngrams_of_an_embedding_beat_the_words_themselves(study, full):
    bm25s = pytest.importorskip("bm25s")
    several = {}
    for caption, image in zip(study.corpus.captions, study.corpus.images.tolist()):
        several.setdefault(image, []).append(caption)
    engine = bm25s.BM25()
    tokens = [
        bm25s.tokenize(x, stopwords="en", show_progress=False)
        for x in ([" ".join(x) for x in several.values()], study.queries)
    ]
    engine.index(tokens[0], show_progress=False)
    ids = list(several)
    words = [[ids[k] for k in row] for row in engine.retrieve(tokens[1], k=10, show_progress=False)[0]]
    assert study.hit(full) > study.hit(words), (study.hit(full), study.hit(words))


def test_the_corpus_weighs_ngrams_better_than_the_model_alone(study, prompted, full):
    alone = study.hit(study.found(prompted, frequency=False))
    assert study.hit(full) > alone, (study.hit(full), alone)


def test_repeated_tokens_count_less(study, prompted, full):
    plain = study.hit(study.found(prompted, beta=0.0))
    assert study.hit(full) >= plain, (study.hit(full), plain)
