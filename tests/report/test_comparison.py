"""The page of a comparison, as a reader meets it."""

from __future__ import annotations

import base64
import html
import importlib.util
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.report import plot_depth_curves, study_page

_spec = importlib.util.spec_from_file_location("report_comparisons", Path(__file__).with_name("comparisons.py"))
comparisons = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = comparisons
_spec.loader.exec_module(comparisons)

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"
SECTIONS = ["accuracy", "gains", "winner", "pairs", "regions", "layers", "warp", "curves", "costs"]
VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """Tags in order, each closed by its own, and the words of every section."""

    def __init__(self, folder) -> None:
        super().__init__()
        self.source = (folder / "index.html").read_text(encoding="utf-8")
        self.tags, self.open, self.words, self.cells = [], [], {}, []
        self.section, self.row = "", None
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), self.section))
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append((self.section, []))
        if tag in ("td", "th"):
            self.cells[-1][1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        self.words[self.section] = self.words.get(self.section, "") + data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][1][-1] += data

    @property
    def sections(self):
        return [a["id"] for tag, a, _ in self.tags if tag == "section"]

    def images(self, section):
        return [a for tag, a, where in self.tags if tag == "img" and where == section]

    def rows(self, section, *start):
        """Rows of a section's tables that begin with these cells."""
        return [cells for where, cells in self.cells if where == section and cells[: len(start)] == list(start)]

    def figures(self, section):
        """SVG sources of a section."""
        found = []
        for image in self.images(section):
            kind, content = image["src"].split(",", 1)
            if "svg" in kind:
                found.append(base64.b64decode(content).decode())
        return found


def texts(svg):
    return [html.unescape(re.sub("<[^>]+>", "", x)).strip() for x in re.findall(r"<text[^>]*>(.*?)</text>", svg, re.S)]


def write(folder, title="cells", **parts):
    about = {k: parts.pop(k) for k in ("summary", "settings", "notes", "provenance", "files") if k in parts}
    return Page(study_page(title, comparison=parts, **about).write(folder).parent)


@pytest.fixture(scope="module")
def parts():
    return comparisons.build(place="none", n_voxels=60, layers=("early", "late"), readouts=("linear", "semantic"))


@pytest.fixture(scope="module")
def page(parts, tmp_path_factory):
    return write(tmp_path_factory.mktemp("comparison"), **parts)


def test_page_stands_alone(page):
    assert page.sections == [*SECTIONS, "notes", "origin"]
    links = [a["href"] for tag, a, _ in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in page.sections]
    scripts = [a for tag, a, _ in page.tags if tag == "script"]
    assert scripts == [{}]
    assert not [1 for tag, _, _ in page.tags if tag in ("link", "iframe", "object")]
    images = [a for tag, a, _ in page.tags if tag == "img"]
    assert all(a["src"].startswith("data:image/") for a in images)
    assert "http://" not in re.sub(r'src="data:[^"]+"', "", page.source)
    policy = next(a["content"] for tag, a, _ in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_every_figure_has_words_and_a_table(page):
    for section in SECTIONS:
        images = page.images(section)
        assert images, section
        assert all(len(a["alt"]) > 25 and re.search(r"\d", a["alt"]) for a in images), section
        assert page.rows(section), f"{section} has no table"


def test_accuracy_table_holds_the_medians(page, parts):
    r = parts["scores"]["r"]
    for cell in r["cell"].values:
        (row,) = page.rows("accuracy", str(cell), "57")
        assert row[2] == f"{float(np.nanmedian(r.sel(cell=cell))):.3f}"
    drawn = texts(page.figures("accuracy")[0])
    v1 = r.sel(cell="early/linear").values[parts["scores"]["roi"].values == "V1"]
    assert f"{np.nanmedian(v1):.2f}" in drawn
    assert "3 of 60 voxels have no score" in page.words["accuracy"]


def test_gains_have_the_sign_of_readout_less_baseline(page, parts, tmp_path):
    truth = parts["scores"]["r"]
    gain = truth.sel(cell="early/semantic") - truth.sel(cell="early/linear")
    (row,) = page.rows("gains", "early", "semantic", "all")
    assert float(row[4].replace("−", "-")) == pytest.approx(float(np.nanmedian(gain)), abs=6e-4)
    assert float(row[4]) > 0
    assert float(row[5]) < float(row[4]) < float(row[6])
    # The same pair written the other way round is the same gain.
    pairs = parts["pairs"]
    turned = pairs.rename(columns={"a": "b", "b": "a"}).assign(
        median_difference=-pairs["median_difference"], low=-pairs["high"], high=-pairs["low"]
    )
    other = write(tmp_path, **{**parts, "pairs": turned})
    assert other.rows("gains", "early") == page.rows("gains", "early")
    # Readouts of different features are not a gain.
    assert {cells[0] for cells in page.rows("gains")} == {"features", "early", "late"}


def test_pairs_are_antisymmetric_and_unsure_ones_carry_a_dot(page, parts):
    (svg,) = page.figures("pairs")
    pairs = parts["pairs"][parts["pairs"]["kind"] == "all"]
    drawn = texts(svg)
    for row in pairs.to_dict("records"):
        value = abs(row["median_difference"])
        if row["q"] < 0.05 and value > 0.011:
            assert f"{value:.2f}" in drawn
            assert f"−{value:.2f}" in drawn
    assert drawn.count("•") == 2 * int((pairs["q"] >= 0.05).sum())
    assert f"{int((pairs['q'] < 0.05).sum())} of {len(pairs)} pairs" in page.words["pairs"]


def test_unsure_differences_are_not_written_as_numbers(parts, tmp_path):
    page = write(tmp_path, **{**parts, "pairs": parts["pairs"].assign(q=0.4)})
    assert texts(page.figures("pairs")[0]).count("•") == 12
    assert "0 of 6 pairs differ" in page.words["pairs"]


def test_shares_of_winners_and_regions_are_counted(page, parts):
    labels = parts["winner"]["winner"].values
    known = labels != ""
    share = f"{100 * np.mean(labels[known] == 'tie'):.0f} %"
    assert page.rows("winner", "all", "all", "57")[0][-1] == share
    assert share in page.words["winner"]
    region = parts["regions"]["region"].values
    v1 = region[1][(parts["scores"]["roi"].values == "V1") & (region[1] != "")]
    (row,) = page.rows("regions", "semantic", "roi", "V1")
    assert row[4:] == [f"{100 * np.mean(v1 == c):.0f} %" for c in ("vision", "dense", "single", "not separable")]
    agree = float(parts["regions"]["agreement"].values.mean())
    assert f"{100 * agree:.0f} % of voxels in the same class" in page.words["regions"]


def test_units_without_a_place_are_one_bar_each(page, parts):
    svg = page.figures("winner")[0]
    group = re.search(r'<g id="PolyCollection_1">(.*?)</g>', svg, re.S).group(1)
    assert group.count("<path") == 57
    assert "one bar for each" in page.words["winner"]


@pytest.mark.parametrize(
    ("place", "words", "each"),
    [
        pytest.param("surface", "fsaverage5, flat or inflated", 2, marks=pytest.mark.slow),
        ("volume", "Slices through", 1),
    ],
)
def test_maps_are_drawn_where_voxels_have_a_place(place, words, each, tmp_path):
    parts = comparisons.build(place=place, n_voxels=120, layers=("late",), readouts=("linear", "semantic"))
    page = write(tmp_path, **parts)
    for section, n in (("winner", 1), ("regions", 2), ("layers", 1)):
        maps = [a for a in page.images(section) if a["src"].startswith("data:image/png")]
        assert n <= len(maps) <= n * each
        assert words in page.words[section]


def test_shared_places_of_subjects_fall_back_to_units(tmp_path):
    parts = comparisons.build(place="surface", n_voxels=48, layers=("late",), readouts=("linear", "semantic"))
    once = parts["scores"].isel(voxel=slice(0, 20))
    again = once.assign_coords(voxel=once["voxel"].values + 1000)
    scores = xr.concat([once, again], "voxel").assign_coords(subject=("voxel", ["one"] * 20 + ["two"] * 20))
    winner = xr.Dataset({"winner": ("voxel", ["late/linear", "tie"] * 20)}, coords={"voxel": scores["voxel"].values})
    page = write(tmp_path, scores=scores, table=comparisons.table_of(scores), winner=winner)
    assert "units are drawn side by side" in page.words["winner"]
    assert page.rows("winner", "subject", "two", "20")
    assert not [a for a in page.images("winner") if "png" in a["src"][:20]]


def test_equal_inputs_give_equal_bytes(parts, page, tmp_path):
    assert write(tmp_path, **parts).source == page.source
    changed = {**parts, "scores": parts["scores"].assign(r=parts["scores"]["r"] + 0.1)}
    assert write(tmp_path, **changed).source != page.source


@pytest.mark.slow
def test_what_is_not_given_is_left_out(parts, tmp_path):
    page = write(tmp_path, scores=parts["scores"], table=parts["table"])
    assert page.sections == ["accuracy", "costs", "origin"]
    for name in ("pairs", "winner", "regions", "layers", "warp", "curves"):
        page = write(tmp_path, **{k: v for k, v in parts.items() if k != name})
        gone = {name, "gains"} if name == "pairs" else {name}
        assert page.sections == [s for s in [*SECTIONS, "notes", "origin"] if s not in gone]
    quiet = {**parts, "curves": parts["curves"].iloc[:0], "warp": parts["warp"] * np.nan}
    assert not {"curves", "warp"} & set(write(tmp_path, **quiet).sections)


def test_names_cannot_become_markup(parts, tmp_path):
    evil = {"early/linear": f"{EVIL}/linear"}

    def named(values):
        return [evil.get(str(x), str(x)) for x in values]

    table, pairs, curves = (parts[k].copy() for k in ("table", "pairs", "curves"))
    table["cell"] = named(table["cell"])
    table["group"] = table["group"].replace("V1", EVIL)
    table.loc[table["features"] == "early", "features"] = EVIL
    pairs["a"], pairs["b"] = named(pairs["a"]), named(pairs["b"])
    pairs["group"] = pairs["group"].replace("V1", EVIL)
    curves["cell"] = named(curves["cell"])
    labels = np.array(named(parts["winner"]["winner"].values))
    labels[5] = f"{EVIL}/linear"
    scores = parts["scores"].assign_coords(
        cell=named(parts["scores"]["cell"].values), roi=parts["scores"]["roi"].where(lambda x: x != "V1", EVIL)
    )
    page = write(
        tmp_path,
        title=EVIL,
        scores=scores,
        table=table,
        pairs=pairs,
        curves=curves,
        winner=xr.Dataset({"winner": ("voxel", labels)}, coords={"voxel": scores["voxel"].values}),
        regions=parts["regions"].assign_attrs(vision=EVIL).assign_coords(readout=[EVIL, "b"]),
        layers=parts["layers"].assign_coords(layers=[EVIL, "late"]).assign_attrs(readout=EVIL),
        layer_table=parts["layer_table"].assign(best_layer=EVIL),
        warp=parts["warp"].rename(warp_shift=f"warp_{EVIL}").assign_coords(cell=scores["cell"].values),
        summary={EVIL: EVIL, "best_cell": EVIL},
        settings={EVIL: EVIL},
        notes=[EVIL],
        provenance=EVIL,
        files=[EVIL],
    )
    assert len([1 for tag, _, _ in page.tags if tag == "script"]) == 1
    assert all(a["src"].startswith("data:") and "onerror" not in a for tag, a, _ in page.tags if tag == "img")
    assert "{{ 7 * 7 }}" in page.words["notes"]
    assert EVIL in page.words["origin"]
    for section in SECTIONS:
        for svg in page.figures(section) if page.images(section) else []:
            assert "<script" not in svg
            assert "<img" not in svg


@pytest.mark.slow
def test_one_cell_and_thirty(tmp_path):
    one = comparisons.build(place="none", n_voxels=30, layers=("late",), readouts=("semantic",))
    one["winner"] = None
    page = write(tmp_path, **one)
    assert "gains" not in page.sections
    assert "pairs" not in page.sections
    assert page.rows("accuracy", "late/semantic", "27")
    layers = tuple(f"block number {k} of a very long network name" for k in range(10))
    many = comparisons.build(place="none", n_voxels=72, layers=layers, readouts=("linear", "gaussian", "semantic"))
    page = write(tmp_path, **many)
    assert len(page.rows("costs")) == 31
    assert len({cells[0] for cells in page.rows("pairs")} | {cells[1] for cells in page.rows("pairs")}) == 32
    assert "6 best of 10 feature spaces" in page.words["gains"]
    heading = texts(page.figures("accuracy")[0])
    assert sum(x.endswith("…") for x in heading) == 30


def test_voxels_without_scores(parts, tmp_path):
    nothing = {**parts, "scores": parts["scores"] * np.nan}
    nothing["winner"] = xr.Dataset({"winner": ("voxel", [""] * 60)}, coords={"voxel": np.arange(60)})
    nothing["regions"] = parts["regions"].assign(region=xr.full_like(parts["regions"]["region"], ""))
    nothing["layers"] = parts["layers"] * np.nan
    nothing["table"] = comparisons.table_of(nothing["scores"])
    page = write(tmp_path, **nothing)
    assert "60 of 60 voxels have no score" in page.words["accuracy"]
    assert page.rows("winner", "all", "all", "0")
    # One cell that failed leaves the others as they are.
    r = parts["scores"]["r"].copy()
    r[0] = np.nan
    scores = parts["scores"].assign(r=r)
    page = write(tmp_path, scores=scores, table=comparisons.table_of(scores))
    assert page.rows("accuracy", "early/linear", "0")[0][2] == "–"
    assert page.rows("accuracy", "early/semantic", "57")


def test_forty_groups_are_cut_and_said(tmp_path):
    r = np.random.default_rng(0).random((2, 400))
    roi = [f"area {1 + k % 40}" for k in range(400)]
    scores = xr.Dataset({"r": (("cell", "voxel"), r)}, coords={"cell": ["a/linear", "b/linear"], "roi": ("voxel", roi)})
    page = write(tmp_path, scores=scores, table=comparisons.table_of(scores))
    assert "The 22 largest of 41 groups are drawn." in page.words["accuracy"]
    drawn = [x for x in texts(page.figures("accuracy")[0]) if x.startswith("area")]
    assert drawn == [f"area {k}" for k in range(1, 22)]
    assert len(page.rows("accuracy", "a/linear", "roi")) == 40


def test_log_axes_say_plain_numbers(page):
    (svg,) = page.figures("costs")
    assert "mathdefault" not in svg
    assert any(re.fullmatch(r"[\d.]+ ?k?", x) for x in texts(svg))


def test_curves_show_the_chosen_settings(page, parts):
    curves = parts["curves"]
    own = curves[curves["cell"] == "late/semantic"]
    peaks = own.groupby(["fold", "candidate"])["validation_r"].max().groupby("fold").max()
    (row,) = page.rows("curves", "late/semantic")
    assert row[1] == "3"
    assert float(row[4]) == pytest.approx(peaks.median(), abs=6e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": pd.DataFrame()}, "scores is a DataFrame"),
        ({"scores": xr.Dataset({"r": ("voxel", [0.1])})}, r"needs a variable 'r' over \('cell', 'voxel'\)"),
        ({"table": pd.DataFrame({"cell": [], "kind": [], "group": []})}, "no column 'features'"),
        ({"pairs": pd.DataFrame({"a": ["x"]})}, "no column 'b'"),
        ({"winner": xr.Dataset({"winner": ("voxel", ["tie"])})}, "winner has 1 voxels and scores 60"),
        ({"regions": xr.Dataset({"label": ("voxel", ["a"])})}, "no variable 'region'"),
    ],
)
def test_what_does_not_fit_is_said(parts, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path, **{**parts, **change})
    assert not (tmp_path / "index.html").exists()


def test_cells_given_twice_are_refused(parts, tmp_path):
    scores = parts["scores"].assign_coords(cell=["a", "b", "a", "c"])
    with pytest.raises(DataError, match="cells a are there twice"):
        write(tmp_path, scores=scores, table=parts["table"])


def test_a_comparison_can_be_shown_as_it_is(tmp_path):
    comparison = pytest.importorskip("neuroenc.encoders.comparison")
    from neuroenc.data import make_features, make_responses

    rng = np.random.default_rng(0)
    ids = [f"s{k}" for k in range(150)]
    spaces = {name: rng.standard_normal((150, 6)).astype("float32") for name in ("eye", "dense", "text")}
    y = np.concatenate([x @ rng.standard_normal((6, 4)) for x in spaces.values()], axis=1)
    responses = make_responses(y + rng.standard_normal(y.shape), stimulus=ids, roi=["A"] * 4 + ["B"] * 4 + ["C"] * 4)
    given = {name: make_features(x, stimulus=ids) for name, x in spaces.items()}
    found = comparison.compare(given, ["linear"], responses, cv=3, n_bootstraps=200, progress=False)
    layers, layer_table = found.layer_map(["eye", "dense", "text"], "linear")
    page = write(
        tmp_path,
        title="ridge",
        scores=found.scores,
        table=found.table(),
        pairs=found.pairwise(),
        winner=found.winner(),
        regions=found.regions(vision="eye", dense="dense", single="text"),
        layers=layers,
        layer_table=layer_table,
        warp=found.warp_spread(),
        curves=found.curves(),
        summary=found.summary(),
    )
    assert page.sections == ["accuracy", "winner", "pairs", "regions", "layers", "costs", "origin"]
    assert page.rows("winner", "roi", "A", "4")[0][3:] != ["–", "–", "–", "–"]
    best = {cells[1]: cells[3] for cells in page.rows("layers", "roi")}
    assert "Score by depth" in page.words["layers"]
    assert "A triangle marks the jump point" in page.words["layers"]
    assert len(plot_depth_curves(layers, targets=["A", "C"]).axes) == 2
    with pytest.raises(ConfigError, match="unknown group 'D'"):
        plot_depth_curves(layers, targets=["D"])
    with pytest.raises(DataError, match="need score"):
        plot_depth_curves(layers[["r"]])
    assert best == {"A": "eye", "B": "dense", "C": "text"}


def test_the_headline_is_what_its_tables_say(parts, tmp_path):
    """Whatever a summary claims: median, share of the ceiling and lead stand in the tables below."""
    best, other = (str(c) for c in parts["scores"]["cell"].values[:2])
    table = parts["table"].assign(median_r_normalised=0.5)
    table.loc[(table["cell"] == best) & (table["kind"] == "all"), ["median_r", "median_r_normalised"]] = 0.123, 0.456
    row = {"a": other, "b": best, "kind": "all", "group": "all", "median_difference": 0.03, "low": 0.011, "high": 0.047}
    pairs = pd.DataFrame([{**row, "p": 0.001, "q": 0.002}])
    summary = {"best_cell": best, "best_median_r": 0.9, "best_difference": 0.2}
    written = write(tmp_path, **{**parts, "table": table, "pairs": pairs, "summary": summary})
    assert f"it is behind {other} by (0.011 to 0.047); behind {other}" in html.unescape(written.source)
    head = html.unescape(written.source).split("<section")[0]
    for value in ("0.030", "0.12", "0.46"):
        assert f">{value}<" in head


def test_gates_are_shown_for_the_cells_that_have_them(parts, tmp_path):
    cells, voxels = parts["scores"]["cell"].values.tolist(), parts["scores"].sizes["voxel"]
    values = np.full((len(cells), 2, voxels), np.nan)
    values[1] = np.linspace(0, 1, 2 * voxels).reshape(2, voxels)
    gates = xr.DataArray(values, dims=("cell", "space", "voxel"), coords={"cell": cells, "space": ["early", EVIL]})
    page = write(tmp_path, scores=parts["scores"], table=parts["table"], gates=gates)
    assert page.sections == ["accuracy", "gates", "costs", "origin"]
    assert EVIL in page.words["gates"]
    assert cells[1] in page.words["gates"]
    assert cells[2] not in page.words["gates"]
    assert "gates" not in write(tmp_path, scores=parts["scores"], table=parts["table"], gates=gates * np.nan).sections


def test_conflict_between_tasks_is_a_matrix_for_each_cell(parts, tmp_path):
    cells = parts["scores"]["cell"].values.tolist()[:2]
    values = np.full((2, 3, 3), np.nan)
    values[0], values[1, :2, :2] = np.eye(3) - 0.25, [[1, 0.5], [0.5, 1]]
    names = ["one", "two", EVIL]
    conflict = xr.DataArray(
        values, dims=("cell", "task", "other"), coords={"cell": cells, "task": names, "other": names}
    )
    page = write(tmp_path, scores=parts["scores"], table=parts["table"], conflict=conflict)
    assert page.sections == ["accuracy", "conflict", "costs", "origin"]
    assert "3 of 3 pairs are below 0" in page.words["conflict"]
    assert "0 of 1 pairs are below 0" in page.words["conflict"]
