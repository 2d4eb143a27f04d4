"""Loaders without bars and without stores, unless a test asks for them."""

from __future__ import annotations

import pytest

from neuroenc import data


@pytest.fixture
def load(tmp_path):
    """``load(name, root, **options)``."""

    def call(name, root, **options):
        if name != "algonauts2023":
            options.setdefault("cache", False)
        return data.load_dataset(name, root=root, progress=False, **options)

    return call
