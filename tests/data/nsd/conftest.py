"""One miniature tree with every space and two versions of the betas, written once and only read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from neuroenc.data.simulate import nsd_tree


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("nsd")
    planted = nsd_tree(root, spaces=("func1pt8mm", "func1mm", "fsaverage", "nativesurface"), betas=("b2", "b3"), seed=3)
    return root, planted


@pytest.fixture
def own(tree, tmp_path) -> Path:
    """A copy that a test may damage (links to the files; a changed one is written anew)."""
    target = tmp_path / "tree"
    shutil.copytree(tree[0], target, copy_function=lambda a, b: Path(b).symlink_to(a))
    return target
