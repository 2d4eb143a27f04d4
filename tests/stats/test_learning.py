"""Power laws of learning curves."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from neuroenc._core.errors import DataError
from neuroenc.stats import fit_power_law

SIZES = np.array([50, 100, 200, 400, 800])


def test_planted_law_is_found_as_by_another_solver(rng):
    scores = 0.4 - 1.5 * SIZES**-0.7 + 0.002 * rng.standard_normal(5)
    law = fit_power_law(SIZES, scores)
    other, _ = curve_fit(lambda n, a, b, c: a - b * n**-c, SIZES, scores, p0=(0.4, 1, 0.5))
    np.testing.assert_allclose((law.asymptote, law.gain, law.exponent), other, rtol=1e-3)
    assert law.believable
    assert law.expected(1600) == pytest.approx(0.4 - 1.5 * 1600**-0.7, abs=0.01)
    assert law.expected(800 * 5) is None


def test_a_law_that_misses_its_last_point_is_not_followed():
    bent = np.array([0.1, 0.2, 0.26, 0.3, 0.2])
    assert "misses the largest" in fit_power_law(SIZES, bent).reason
    assert fit_power_law(SIZES, bent).expected(1600) is None
    assert fit_power_law(SIZES, -0.1 * np.log(SIZES)).reason == "accuracy does not grow"
    assert not fit_power_law(SIZES, np.log(SIZES)).believable  # no end in sight
    with pytest.raises(DataError, match="4 sizes or more"):
        fit_power_law(SIZES[:3], bent[:3])
    with pytest.raises(DataError, match="1 of 5 scores"):
        fit_power_law(SIZES, [*bent[:4], np.nan])
