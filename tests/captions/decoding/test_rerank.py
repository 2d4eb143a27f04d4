"""Captions put in order by their embedding: the sum by hand, order only, and better captions of scenes."""

import numpy as np
import pytest

from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import ConfigError
from neuroenc.captions import load_captioner
from neuroenc.data.simulate import simulate_world
from neuroenc.embedding import ImageEmbedder


@pytest.fixture(scope="module")
def scenes():
    return ImageEmbedder("world", progress=False).embed(simulate_world(20, seed=5)).values


@pytest.fixture(scope="module")
def captioner():
    return load_captioner("world", device="cpu", beams=6)


def test_scores_are_the_sum_and_the_best_comes_first(scenes, captioner):
    plain = captioner.generate(scenes, top=6)
    found = captioner.with_options(rerank=0.7).generate(scenes, top=6)
    inputs = captioner.inputs(scenes).astype(np.float64)
    for row, before, after in zip(inputs, plain, found):
        assert {c.text for c in before} == {c.text for c in after}
        texts = [c.text for c in before]
        vectors = unit_rows(np.asarray(captioner.embed_text(texts), dtype=np.float64))
        if captioner.centre:
            vectors = unit_rows(vectors - captioner.text_direction)
        expected = dict(zip(texts, [c.score for c in before] + 0.7 * vectors @ unit_rows(row[None])[0]))
        np.testing.assert_allclose([c.score for c in after], [expected[c.text] for c in after], atol=1e-5)
        done = [c.score for c in after if c.finished]
        assert done == sorted(done, reverse=True)


def test_more_weight_brings_captions_nearer_and_batches_do_not_matter(scenes, captioner):
    mean = []
    for weight in (0.0, 2.0, 50.0):
        texts = [c[0].text for c in captioner.with_options(rerank=weight).generate(scenes)]
        vectors = unit_rows(np.asarray(captioner.embed_text(texts), dtype=np.float64))
        if captioner.centre:
            vectors = unit_rows(vectors - captioner.text_direction)
        mean.append(float((vectors * unit_rows(captioner.inputs(scenes).astype(np.float64))).sum(axis=1).mean()))
    assert mean[0] < mean[1] < mean[2]
    small = captioner.with_options(rerank=2.0, batch_size=3).generate(scenes)
    assert [c[0].text for c in small] == [c[0].text for c in captioner.with_options(rerank=2.0).generate(scenes)]


def test_samples_are_put_in_order_too(scenes, captioner):
    found = captioner.with_options(rerank=5.0, method="sample").generate(scenes[:4], top=3)
    assert all(
        [c.score for c in several] == sorted((c.score for c in several), reverse=True)
        for several in found
        if all(c.finished for c in several)
    )


def test_errors(scenes, captioner):
    with pytest.raises(ConfigError, match="needs embed_text"):
        captioner.with_options(rerank=1.0, embed_text=None).generate(scenes[:1])
    with pytest.raises(ConfigError, match="at least 0"):
        captioner.with_options(rerank=-1.0).generate(scenes[:1])
