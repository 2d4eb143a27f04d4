"""Sizes as users write them."""

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError
from neuroenc._core.memory import parse_memory


@pytest.mark.parametrize(
    "value",
    [
        "1.2.3GB",
        "GB",
        "",
        "-1GB",
        "1 GB GB",
        "1e3",
        "nan",
        "inf",
        ".",
        "٣GB",
        "1,5GB",
        "0",
        0,
        -1,
        True,
        float("nan"),
        float("inf"),
        [1],
        b"1GB",
        "9" * 400,
        "0.5B",
        "1 XB",
        "1G",
    ],
)
def test_what_is_no_size_is_refused(value):
    with pytest.raises(ConfigError, match="max_memory"):
        parse_memory(value)


@pytest.mark.parametrize(
    ("value", "size"), [("1.5 gb", 1_500_000_000), (".5KiB", 512), ("7", 7), (np.int64(9), 9), (1e3, 1000), ("1.b", 1)]
)
def test_sizes(value, size):
    assert parse_memory(value) == size
