"""Rendered and perturbed texts: what is drawn where, what is refused, and what a perturbation keeps."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import perturb_text, render_text, simulate_world

TEXTS = [c for several in simulate_world(60, seed=3).captions for c in several[:1]]


def edits(a, b):
    """Damerau-Levenshtein distance (optimal string alignment)."""
    d = np.zeros((len(a) + 1, len(b) + 1), int)
    d[:, 0], d[0] = range(len(a) + 1), range(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return int(d[-1, -1])


def ink(stimuli, n=0):
    """Rows and columns of the dark pixels."""
    return np.nonzero(stimuli.images[n].mean(-1) < 128)


class TestRendering:
    def test_the_text_lies_in_its_box_about_its_position(self):
        for position in ((0.5, 0.5), (0.3, 0.7)):
            drawn = render_text(["house"], position=position, shape=(100, 200))
            y, x = ink(drawn)
            box = drawn.table.iloc[0]
            assert box["left"] <= x.min()
            assert x.max() < box["right"]
            assert box["top"] <= y.min()
            assert y.max() < box["bottom"]
            assert abs((x.min() + x.max()) / 2 - position[0] * 200) < 3
            assert abs((box["top"] + box["bottom"]) / 2 - position[1] * 100) < 2

    def test_sizes_colours_and_a_font_of_ones_own(self):
        small, large = (render_text(["house"], size=s) for s in (16, 32))
        assert np.ptp(ink(large)[1]) / np.ptp(ink(small)[1]) == pytest.approx(2, abs=0.15)
        red = render_text(["house"], colour="#ff0000", background="black").images[0]
        assert red[..., 0].max() > 200
        assert not red[..., 1:].any()
        fonts = pytest.importorskip("matplotlib.font_manager")
        other = render_text(["house"], font=fonts.findfont("DejaVu Serif"))
        assert not np.array_equal(other.images, render_text(["house"]).images)

    def test_ids_and_captions_are_the_texts(self):
        drawn = render_text(TEXTS[:3], size=12)
        assert drawn.ids.tolist() == TEXTS[:3]
        assert drawn.captions == tuple((t,) for t in TEXTS[:3])
        assert drawn.content_hash() == render_text(TEXTS[:3], size=12).content_hash()
        # The same word is the same picture, whatever stands beside it in the list.
        alone = render_text(TEXTS[1:2], size=12)
        assert np.array_equal(alone.images[0], drawn.images[1])
        assert render_text(["a", "a"], ids=["1", "2"]).ids.tolist() == ["1", "2"]
        with pytest.raises(DataError, match=r"more than once.*'a'"):
            render_text(["a", "a"])

    def test_long_texts_wrap_or_are_refused_with_what_they_need(self):
        text = "a red house beside a lake"
        drawn = render_text([text], shape=(128, 128))
        assert drawn.table["bottom"].item() - drawn.table["top"].item() > 50
        with pytest.raises(DataError, match=r"needs (\d+) x \d+ pixels.*without line breaks") as error:
            render_text([text], shape=(128, 128), wrap=False)
        # The next step that is told is enough.
        height, width = (int(n) for n in str(error.value).split("shape=(")[1].split(")")[0].split(", "))
        render_text([text], shape=(height, width), wrap=False)
        size = int(str(error.value).split("size=")[1].split(";")[0])
        render_text([text], shape=(128, 128), size=size, wrap=False)
        with pytest.raises(DataError, match="nearer to the centre"):
            render_text(["house"], position=(0.0, 0.5))
        cut = render_text(["house"], position=(0.0, 0.5), clip=True)
        assert cut.table["left"].item() < 0

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"size": 0}, "size=0"),
            ({"shape": 64}, "height, width"),
            ({"shape": (64, 0)}, "width=0"),
            ({"position": (1.5, 0)}, "right"),
            ({"colour": "reed"}, "colour='reed'"),
            ({"font": __file__}, "font"),
        ],
    )
    def test_bad_settings_are_refused(self, options, match):
        with pytest.raises((ConfigError, DataError), match=match):
            render_text(["a"], **options)

    def test_empty_texts_are_refused(self):
        with pytest.raises(DataError, match="1 of 2"):
            render_text(["a", " "])


class TestPerturbations:
    def test_a_text_is_perturbed_alike_wherever_it_stands(self):
        for kind in ("typo", "shuffle", "space", "scramble"):
            found = perturb_text(TEXTS, kind)
            assert found == perturb_text(TEXTS[::-1], kind)[::-1]
            assert found[5] == perturb_text(TEXTS[5:6], kind)[0]
            assert found != perturb_text(TEXTS, kind, seed=1)
            assert all(a != b for a, b in zip(TEXTS, found))
            assert perturb_text(TEXTS, kind, 0.0) == TEXTS

    def test_typos_are_as_many_as_the_rate_says(self):
        letters = [sum(c.isalnum() for c in t) for t in TEXTS]
        for rate in (0.05, 0.2):
            wanted = [max(1, round(rate * n)) for n in letters]
            made = [edits(a, b) for a, b in zip(TEXTS, perturb_text(TEXTS, rate=rate))]
            # One exchange upon another is three edits of this distance.
            assert max(m - w for m, w in zip(made, wanted)) <= 1
            assert sum(made) <= sum(wanted)
            assert sum(made) >= 0.85 * sum(wanted)

    def test_first_letters_can_be_kept(self):
        for kind in ("typo", "scramble"):
            for a, b in zip(TEXTS, perturb_text(TEXTS, kind, keep_first=True)):
                assert [w[0] for w in a.split()] == [w[0] for w in b.split()]
        with pytest.raises(ConfigError, match="keep_first"):
            perturb_text(TEXTS, "shuffle", keep_first=True)

    def test_order_spaces_and_scrambles_keep_what_they_say(self):
        for a, b in zip(TEXTS, perturb_text(TEXTS, "shuffle")):
            assert sorted(a.split()) == sorted(b.split())
        for a, b in zip(TEXTS, perturb_text(TEXTS, "space")):
            assert a.replace(" ", "") == b.replace(" ", "")
        for a, b in zip(TEXTS, perturb_text(TEXTS, "scramble")):
            assert [sorted(w) for w in a.split()] == [sorted(w) for w in b.split()]
        half = perturb_text(TEXTS, "scramble", 0.5)
        changed = [np.mean([x != y for x, y in zip(a.split(), b.split())]) for a, b in zip(TEXTS, half)]
        assert 0.3 < np.mean(changed) < 0.55

    def test_what_cannot_change_stays(self):
        assert perturb_text(["aaa a", "x"], "scramble") == ["aaa a", "x"]
        assert perturb_text(["word", "so so"], "shuffle") == ["word", "so so"]
        assert perturb_text(["!?", "x"], "space") == ["!?", "x"]
        assert perturb_text(["!?"], "typo") == ["!?"]

    def test_unknown_kinds_and_rates_are_refused(self):
        with pytest.raises(ConfigError, match="'typo'"):
            perturb_text(TEXTS, "typos")
        with pytest.raises(ConfigError, match="rate"):
            perturb_text(TEXTS, rate=2)
