"""The search box of the page of captions: its script ranks as `search_captions` does."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import (
    CaptionStudy,
    score_words,
    search_captions,
    search_vectors,
    search_vocabulary,
    search_voxels,
)
from neuroenc.report import write_caption_report
from neuroenc.report.explorer import _data

_spec = importlib.util.spec_from_file_location("caption_studies", Path(__file__).parents[1] / "browser" / "studies.py")
studies = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = studies
_spec.loader.exec_module(studies)

SCRIPT = Path(_data.__file__).parents[1] / "templates" / "explorer_search.js"
NODE = shutil.which("node")
QUERIES = [
    "pizza",
    "dogs",
    "red house",
    "church sign",
    "piz",
    '"red house"',
    "meal",
    "a meal near a house",
    "zebra",
    "?",
]


@pytest.fixture(scope="module")
def study():
    return studies.with_vectors(studies.made_up(120, seed=4))


def test_words_that_no_caption_holds_find_what_they_mean(study):
    said = study.captions.groupby("voxel")["caption"].apply(" / ".join)
    assert len(search_captions("meal", study, method="words")) == 0
    found = search_captions("meal", study)
    assert (found["words"] == 0).all()
    assert found["vectors"].tolist() == found["rank"].tolist() == list(range(1, len(found) + 1))
    first = said[found["voxel"].head(10)]
    assert first.str.contains("pizza|cake").mean() >= 0.9
    both = search_captions("pizza", study)
    assert ((both["words"] > 0) == said[both["voxel"]].str.contains("pizza").to_numpy()).all()
    assert both["score"].is_monotonic_decreasing
    places = both[["words", "vectors"]].to_numpy(float)
    np.testing.assert_allclose(both["score"], np.where(places > 0, 1 / (60 + places), 0).sum(axis=1))
    assert search_captions(["zebra", "?"], study).empty
    assert (search_captions('"red house"', study)["vectors"] == 0).all()
    assert search_captions("pizza", study, top=3)["voxel"].tolist() == both["voxel"].tolist()[:3]
    assert {"query", "rank", "voxel", "score", "words", "vectors", "roi"} == set(both.columns)


def test_a_query_of_a_plain_study_needs_words(study):
    plain = dataclasses.replace(study, vectors=None)
    same = search_captions("pizza", plain, method="words")
    pd.testing.assert_frame_equal(same, search_captions("pizza", study, method="words"))
    with pytest.raises(ConfigError, match="search_vectors"):
        search_captions("pizza", plain)
    with pytest.raises(ConfigError, match="hybrid, words, vectors"):
        search_captions("pizza", study, method="word")


def test_few_bits_and_dimensions_rank_as_all_of_them(study):
    embed_text, rng = studies.embedder(), np.random.default_rng(1)
    texts = [*studies.NOUNS, *studies.MEANT, "red", "green", "old"]
    weights = rng.standard_normal((80, 200))
    prompts = [f"a photo of {'an' if t == 'old' else 'a'} {t}" for t in texts]
    exact = search_voxels(prompts, weights, embed_text, reference=prompts)
    exact = exact.pivot(index="text", columns="voxel", values="z").loc[prompts].to_numpy()
    packed = search_vectors(weights, embed_text, texts)
    z = packed["a"].values.astype(int) @ packed["b"].values.astype(int).T * packed["s"].values
    assert packed["a"].dtype == packed["b"].dtype == np.int8
    assert np.abs(z - exact).max() < 0.05
    few = search_vectors(weights, embed_text, texts, components=3)
    assert few.sizes["component"] == 3
    assert few.attrs["explained"] < packed.attrs["explained"] <= 1 + 1e-12


def test_the_vocabulary_has_each_word_once_and_what_is_not_known_is_left_out(study):
    listed = search_vocabulary(["two red dogs", "a red dog"], ["a zebra by a zebra", "a comet"])
    assert listed[:2] == ["red", "dogs"]
    assert {"red dog", "zebra"} & set(listed) == {"zebra"}
    assert "red dogs" in search_vocabulary(["two red dogs", "the red dogs", "a red dog"])
    assert "comet" not in listed
    assert len(search_vocabulary(["a dog"], n=7)) == 7
    assert {"meal", "pizza"} <= set(study.vectors["text"].values.tolist())
    assert not {"zebra", "animal"} & set(study.vectors["text"].values.tolist())
    embed_text = studies.embedder()

    def warns(texts):
        warnings.warn("no word is known", UserWarning, stacklevel=2)
        return embed_text(texts)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert search_vectors(np.eye(80), warns, ["pizza", "dog", "cake", "zebra"]).sizes["text"] == 3
    with pytest.raises(DataError, match="knows 1 of 2 texts"):
        search_vectors(np.eye(80), studies.embedder(), ["pizza", "zebra"])


def test_vectors_are_kept_with_the_study_and_those_of_others_are_refused(study, tmp_path):
    again = CaptionStudy.load(study.save(tmp_path / "kept"))
    assert again.vectors.identical(study.vectors)
    assert CaptionStudy.load(dataclasses.replace(study, vectors=None).save(tmp_path / "kept")).vectors is None
    assert not (tmp_path / "kept" / "vectors.nc").exists()
    with pytest.raises(DataError, match="voxels that scores does not hold"):
        dataclasses.replace(study, vectors=study.vectors.assign_coords(voxel=study.vectors["voxel"] + 9999))
    with pytest.raises(DataError, match="legal"):
        dataclasses.replace(study, vectors=study.vectors.drop_vars("a"))


def in_script(study, queries, ask="[...search.rank(q)].map(([n, e]) => [n, e.places, e.score])"):
    """What the page's script answers to each query, in node."""
    order = study.scores["voxel"].values
    texts = study.captions.groupby("voxel")["caption"].apply(list)
    r = [_data._number(x) for x in study.scores["r"].values]
    voxels = [{"texts": texts.get(v, []), "numbers": {"r": x}} for v, x in zip(order, r)]
    vectors = None if study.vectors is None else _data.vector_data(study.vectors, order)
    run = (
        "const [voxels, vectors, queries] = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        "const search = new CaptionSearch(voxels, vectors);"
        f"console.log(JSON.stringify(queries.map((q) => {ask})));"
    )
    told = json.dumps([voxels, vectors, queries])
    code = SCRIPT.read_text(encoding="utf-8") + run
    done = subprocess.run([NODE, "-e", code], input=told, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.parametrize("vectors", [True, False])
def test_the_script_ranks_as_python_does(study, vectors):
    one = study if vectors else dataclasses.replace(study, vectors=None)
    method = "hybrid" if vectors else "words"
    for query, found in zip(QUERIES, in_script(one, QUERIES)):
        wanted = search_captions(query, one, method=method)
        columns = wanted[["voxel", "words", "vectors", "score"]]
        order = one.scores["voxel"].values
        told = [(int(order[n]), *places) for n, places, _ in found]
        assert told == [tuple(map(int, row[:3])) for row in columns.itertuples(index=False)], query
        np.testing.assert_allclose([score for *_, score in found], wanted["score"], rtol=1e-12)


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_script_scores_words_as_python_does(study):
    queries = ["pizza", "a red house and a unicorn", "qwrtz", ""]
    told = in_script(study, queries, "voxels.map((_, n) => search.say(q, n))")
    order = study.scores["voxel"].values
    has = np.isin(order, study.vectors["voxel"].values)
    for query, answers in zip(queries[:3], told):
        wanted = score_words(query, study).set_index("voxel")
        assert [x is not None for x in answers] == has.tolist()
        for voxel, answer in zip(order[has], np.array(answers, object)[has]):
            assert answer["unknown"] == wanted.attrs["unknown"]
            row = wanted.loc[voxel]
            if not answer["known"]:
                assert row[["z", "cosine", "among_words", "among_voxels"]].isna().all()
                continue
            # Shares are counts of equal comparisons: the very same.
            assert (answer["words"], answer["voxels"]) == (row["among_words"], row["among_voxels"])
            np.testing.assert_allclose([answer["z"], answer["cosine"]], row[["z", "cosine"]].astype(float), rtol=1e-12)
    assert score_words(queries[1], study).attrs["unknown"] == ["unicorn"]


def test_a_voxel_rates_its_own_noun_above_other_words(study):
    first = study.captions[study.captions["rank"] == 1].set_index("voxel").caption
    found = pd.concat([score_words(noun, study).assign(noun=noun) for noun in studies.NOUNS])
    # Weights lie along the first noun of the first caption, with noise.
    own = [next(w for w in first[v].split() if w in studies.NOUNS) == n for v, n in zip(found.voxel, found.noun)]
    for column in ("among_words", "among_voxels", "cosine"):
        assert found.loc[own, column].mean() > 0.2 + found.loc[~np.array(own), column].mean(), column
    assert found["among_words"].between(0, 1).all()
    assert found["among_voxels"].between(0, 1).all()
    with pytest.raises(ConfigError, match="search_vectors"):
        score_words("pizza", dataclasses.replace(study, vectors=None))


def test_the_page_carries_the_vectors_or_says_that_it_has_none(study, tmp_path):
    page = write_caption_report(study, tmp_path / "with", progress=False)
    text = page.read_text(encoding="utf-8")
    assert f"vectors of {study.vectors.sizes['text']} words" in text
    plain = write_caption_report(dataclasses.replace(study, vectors=None), tmp_path / "without", progress=False)
    assert "the study has no vectors of words" in plain.read_text(encoding="utf-8")

    def size(folder):
        return sum(p.stat().st_size for p in (folder / "assets").iterdir())

    assert 0 < size(page.parent) - size(plain.parent) < 20_000


def test_vectors_of_five_thousand_voxels_are_less_than_a_megabyte():
    rng = np.random.default_rng(0)
    sizes = {"a": ("text", 2500), "b": ("voxel", 5000)}
    packed = {k: ((dim, "component"), rng.integers(-127, 128, (n, 64), np.int8)) for k, (dim, n) in sizes.items()}
    scale = [float(f"{x:.6g}") for x in rng.uniform(1e-4, 2e-4, 5000)]
    names = [f"word{k}" for k in range(2500)]
    coords = {"text": names, "voxel": np.arange(5000)}
    vectors = xr.Dataset({**packed, "s": ("voxel", scale)}, coords=coords, attrs={"least": 1.645})
    text, _ = _data.asset(_data.vector_data(vectors, np.arange(5000)))
    # Bytes that nothing compresses: the worst case.
    assert len(text) < 1_000_000
