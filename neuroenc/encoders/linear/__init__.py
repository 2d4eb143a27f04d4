"""Ridge, banded ridge and variance partitioning: encoders with a closed-form solution."""
