"""Editable word lists: concept maps of captions, and zero-shot categories of voxels and images."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import sparse

from neuroenc import stats
from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import one_of, share as check_share
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import provenance
from neuroenc.captions._linear import VOXEL_LABELS
from neuroenc.captions.analysis._words import check_captions, count_terms, region_masks, unique_texts, voxel_keys
from neuroenc.captions.text._phrases import has_spacy, parse
from neuroenc.captions.text._vectors import TEMPLATES, directions_of, embed, prompt
from neuroenc.captions.text._words import singulars, tokens

_IGNORE = "ignore"
Token = tuple[str, frozenset[str]]


def read_word_lists(path: str | os.PathLike[str], key: str) -> dict[str, tuple[str, ...]]:
    """Word lists of a TOML file: one table per name, with the list ``key``."""
    file = Path(path)
    try:
        read = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"word lists {str(file)!r} do not exist. Next step: check the path.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"word lists {str(file)!r} are not TOML: {error}.") from error
    for name, table in read.items():
        if not isinstance(table, dict) or not isinstance(table.get(key), list):
            raise ConfigError(
                f'word lists {str(file)!r} have no list {key!r} under [{name}]. Legal:\n[{name}]\n{key} = ["..."]'
            )
    return check_word_lists({name: table[key] for name, table in read.items()}, str(file))


def check_word_lists(lists: Mapping[str, Iterable[str]], source: str) -> dict[str, tuple[str, ...]]:
    """The lists as tuples of lower-case text; an error for an empty one, or text where a list is meant."""
    found = {}
    for name, entries in lists.items():
        if isinstance(entries, str):
            raise ConfigError(f"{source}: the words of {name!r} are one text, {entries!r}; give a list of words.")
        found[str(name)] = tuple(" ".join(str(w).lower().split()) for w in entries)
        if not found[str(name)] or "" in found[str(name)]:
            raise ConfigError(f"{source}: the list of {name!r} is empty, or has an empty word.")
    if not set(found) - {_IGNORE}:
        raise ConfigError(f"{source} has no list of words; at least one is needed.")
    return found


@cache
def _shipped(file: str, key: str) -> dict[str, tuple[str, ...]]:
    return read_word_lists(Path(__file__).with_name(file), key)


def word_lists(
    given: str | os.PathLike[str] | Mapping[str, Iterable[str]] | None, what: str, file: str, key: str
) -> dict[str, tuple[str, ...]]:
    """Word lists that a setting means: the shipped ones, a mapping, or a TOML file."""
    if given is None:
        return dict(_shipped(file, key))
    return check_word_lists(given, what) if isinstance(given, Mapping) else read_word_lists(given, key)


def load_lexicon(
    lexicon: str | os.PathLike[str] | Mapping[str, Iterable[str]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Load the words of each concept: the shipped lists, a TOML file, or a mapping.

    Parameters
    ----------
    lexicon : path or mapping of concept to words, optional
        Words in the singular; several words ("hot dog") match together and before shorter ones. The concept
        "ignore" holds what belongs to none.

    Returns
    -------
    dict of concept to tuple of words

    Raises
    ------
    ConfigError
        The file is not there or not of that form, or a list is empty.

    Examples
    --------
    >>> "hot dog" in load_lexicon()["food"], load_lexicon({"person": ["Man", "woman"]})
    (True, {'person': ('man', 'woman')})
    """
    return word_lists(lexicon, "the lexicon", "lexicon.toml", "words")


def _tokens_of(doc: Any) -> list[Token]:
    # A verb counts as it is written: "a parked car" is no park.
    return [
        (t.lower_, frozenset({t.lower_, t.lemma_.lower()}) if t.pos_ in ("NOUN", "PROPN") else frozenset({t.lower_}))
        for t in doc
        if t.is_alpha
    ]


class _Matcher:
    """Concepts of a sequence of tokens; the longest entry that fits at a place wins."""

    def __init__(self, lexicon: Mapping[str, Iterable[str]]) -> None:
        self.entries: dict[tuple[str, ...], set[str]] = {}
        for concept, entries in lexicon.items():
            for entry in entries:
                self.entries.setdefault(tuple(tokens(entry)), set()).add(concept)
        self.longest = max(map(len, self.entries))

    def __call__(self, found: list[Token]) -> set[str]:
        concepts: set[str] = set()
        i = 0
        while i < len(found):
            step = 1
            for n in range(min(self.longest, len(found) - i), 0, -1):
                head = tuple(word for word, _ in found[i : i + n - 1])
                hits = [c for form in found[i + n - 1][1] for c in self.entries.get((*head, form), ())]
                if hits:
                    concepts.update(hits)
                    step = n
                    break
            i += step
        return concepts - {_IGNORE}


def concept_maps(
    captions: pd.DataFrame,
    lexicon: str | os.PathLike[str] | Mapping[str, Iterable[str]] | None = None,
    *,
    at_least: float = 0.5,
    parser: str = "auto",
) -> xr.Dataset:
    r"""Concept maps: which concepts, such as "person", the captions of each voxel name.

    .. math:: \mathrm{share}_{kv} = \frac{\#\{c \in v : c \text{ has a word of } k\}}{\#\{c \in v\}}, \qquad
              \mathrm{named}_{kv} = \mathrm{share}_{kv} \ge \mathrm{at\_least},\ \mathrm{share}_{kv} > 0

    Parameters
    ----------
    captions : DataFrame
        Columns ``voxel, caption`` (and ``rank``, coordinates).
    lexicon : path or mapping of concept to words, optional
        See :func:`load_lexicon`.
    at_least : float
        From 0 (any caption) to 1 (all).
    parser : {"auto", "spacy", "rules"}
        How plurals are undone: nouns by spaCy's lemmas (verbs count only as written), or rules for regular plurals
        and a few others. "auto" is spaCy where it is installed; the attribute ``parser`` says which it was.

    Returns
    -------
    Dataset
        ``share`` (concept, voxel) float and ``named`` (concept, voxel) bool, with the voxel coordinates; attributes
        ``at_least, parser, provenance``.

    Raises
    ------
    DataError
        Columns are absent, captions are empty, or several subjects are in one table.
    ConfigError
        The lexicon or a setting is not legal.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (figure 7 and table 2: the distribution of people).

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"voxel": [7, 7, 9], "rank": [1, 2, 1],
    ...                       "caption": ["Two men.", "a hot dog", "a parked car"]})
    >>> maps = concept_maps(frame, parser="rules")
    >>> maps["share"].sel(concept=["person", "food", "animal", "place"]).values.tolist()
    [[0.5, 0.0], [0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """
    check_share("at_least", at_least)
    one_of("parser", parser, ("auto", "spacy", "rules"))
    used = ("spacy" if has_spacy() else "rules") if parser == "auto" else parser
    lists = load_lexicon(lexicon)
    captions = check_captions(captions)
    if "subject" in captions and captions["subject"].nunique() > 1:
        raise DataError(
            f"captions are of {captions['subject'].nunique()} subjects, a map is of one. "
            "Next step: captions[captions.subject == ...]."
        )
    voxel, first = voxel_keys(captions)
    texts, codes = unique_texts(captions["caption"])
    texts = [t.lower() for t in texts]
    match = _Matcher(lists)
    if used == "spacy":
        # Lemmas need tags and no tree.
        found = parse(texts, lambda doc: match(_tokens_of(doc)), disable=["parser"])
    else:
        found = [match([(w, singulars(w)) for w in tokens(t)]) for t in texts]
    terms = count_terms(found, codes)
    counts = terms.by_voxel(voxel, len(first)).toarray()
    names = [c for c in lists if c != _IGNORE]
    share = np.zeros((len(names), len(first)), np.float32)
    for column, name in enumerate(terms.names):
        share[names.index(name)] = counts[:, column] / np.bincount(voxel, minlength=len(first))
    coords = {c: ("voxel", first[c].to_numpy()) for c in VOXEL_LABELS if c in first}
    values = xr.DataArray(
        share, dims=("concept", "voxel"), coords={"concept": names, "voxel": first["voxel"].to_numpy(), **coords}
    )
    named = (values >= at_least) & (values > 0)
    out = xr.Dataset({"share": values, "named": named})
    out.attrs = {"at_least": at_least, "parser": used}
    out.attrs["provenance"] = provenance(step="concept_maps", at_least=at_least, parser=used, concepts=names)
    return out


def concept_shares(
    maps: xr.Dataset, *, groups: Any = None, n_bootstraps: int = 1000, confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Concept shares: percentage of captioned voxels per region that name a concept, with bootstrap intervals.

    Parameters
    ----------
    maps : Dataset
        From :func:`concept_maps`.
    groups : array (voxel,), optional
        What is resampled: parcels or clusters of neighbouring voxels. By default single voxels, as if they were
        independent; neighbours are not, so those intervals are too narrow.
    n_bootstraps, confidence, seed
        Of the intervals (`neuroenc.stats.sample_interval`).

    Returns
    -------
    DataFrame
        ``roi, concept, percent, low, high, n_voxels``; roi is "all" where the maps have none.

    Raises
    ------
    DataError
        ``groups`` does not fit.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"voxel": [0, 1], "rank": 1, "roi": "FFA", "caption": ["a man", "a house"]})
    >>> out = concept_shares(concept_maps(frame, {"person": ["man"]}, parser="rules"), n_bootstraps=50)
    >>> out[["roi", "concept", "percent", "n_voxels"]].values.tolist()
    [['FFA', 'person', 50.0, 2]]
    """
    named = maps["named"].values.astype(np.float64)
    known = maps["share"].notnull().all("concept").values
    n = named.shape[1]
    labels = np.arange(n) if groups is None else np.asarray(groups)
    if labels.shape != (n,):
        raise DataError(f"groups have shape {labels.shape}; legal is one a voxel, ({n},).")
    regions = region_masks(maps["roi"].values if "roi" in maps.coords else ["all"] * n)
    rows = []
    for k, (roi, mask) in enumerate(regions.items()):
        inside = np.flatnonzero(mask & known)
        if len(inside) == 0:
            continue
        unit = np.unique(labels[inside], return_inverse=True)[1]
        one = sparse.csr_matrix((np.ones(len(inside)), (unit, np.arange(len(inside)))))
        size, hits = np.asarray(one.sum(axis=1)).ravel(), one @ named[:, inside].T
        n_units = len(size)
        rng = np.random.default_rng([seed, k])
        drawn = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_bootstraps)
        values = 100 * (drawn @ hits) / (drawn @ size)[:, None]
        percent = 100 * hits.sum(axis=0) / len(inside)
        low, high, _ = stats.sample_interval(
            values, percent, n_units=n_units, confidence=confidence, bounds=(0.0, 100.0)
        )
        for c, concept in enumerate(maps["concept"].values):
            rows.append((roi, str(concept), percent[c], low[c], high[c], len(inside)))
    return pd.DataFrame(rows, columns=["roi", "concept", "percent", "low", "high", "n_voxels"])


def load_categories(
    categories: str | os.PathLike[str] | Mapping[str, Iterable[str]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Load the nouns of each category: the shipped five (face, place, body, word, food), a file or a mapping.

    Parameters
    ----------
    categories : path or mapping of category to nouns, optional
        A TOML file has a table for each category with the key ``nouns``; default the shipped ones.

    Returns
    -------
    dict of category to tuple of nouns

    Raises
    ------
    ConfigError
        A file that is absent or not such a table, a category without nouns.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (table 1).

    Examples
    --------
    >>> list(load_categories())
    ['face', 'place', 'body', 'word', 'food']
    """
    return word_lists(categories, "categories", "categories.toml", "nouns")


def category_regions() -> dict[str, str]:
    """Category of each region that is known for one, of the shipped list: "FFA" is "face"."""
    given = tomllib.loads(Path(__file__).with_name("categories.toml").read_text(encoding="utf-8"))
    return {roi: category for category, table in given.items() for roi in table["rois"]}


def categorise(
    source: Any,
    embed_text: Any,
    categories: str | os.PathLike[str] | Mapping[str, Iterable[str]] | None = None,
    *,
    templates: Sequence[str] = TEMPLATES,
    centre: bool = True,
    text_direction: Any = None,
) -> xr.Dataset:
    r"""Categorise voxels by cosine to text prompts of category nouns.

    .. math:: s_{kv} = \frac{1}{|N_k|} \sum_{n \in N_k} \cos\bigl(d_v - \bar m,\; t_n - \bar t\bigr), \qquad
              \hat k_v = \arg\max_k s_{kv}

    with :math:`t_n` the mean unit vector of noun n over the templates, :math:`\bar t` the mean of the categories'
    means (every category counts once, however many nouns it has) and :math:`\bar m` the mean image direction;
    subtracting them removes the modality gap (see :class:`neuroenc.captions.RetrievalDecoder`). Weights are
    directions of difference already and keep their origin.

    Parameters
    ----------
    source : Dataset of :func:`neuroenc.captions.project`, or weights (feature, voxel)
    embed_text : callable or TextEmbedder
        Texts to vectors in the same space.
    categories : path or mapping of category to nouns, optional
        See :func:`load_categories`.
    templates : sequence of str
        "{}" stands for the noun with its article.
    centre : bool
        False compares plain directions, as the paper does.
    text_direction : array (feature,), optional
        Instead of the mean over categories, for example the mean of a caption corpus.

    Returns
    -------
    Dataset over voxel
        ``score`` (category, voxel), ``category`` ("" without a direction), ``margin`` (best score less the second).

    Raises
    ------
    ConfigError
        Fewer than two categories, or a template without "{}".
    DataError
        Widths differ.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (table 1). Radford et al. (2021), ICML (prompt ensembles).

    Examples
    --------
    >>> import numpy as np
    >>> def embed_text(texts):
    ...     return np.array([[1.0, 0.2] if "dog" in t else [0.2, 1.0] for t in texts])
    >>> found = categorise(np.array([[2.0, -1.0], [0.0, 1.0]]), embed_text, {"animal": ["dog"], "place": ["house"]})
    >>> found["category"].values.tolist()
    ['animal', 'place']
    """
    lists = load_categories(categories)
    if len(lists) < 2:
        raise ConfigError(f"{len(lists)} category; at least two are needed to choose among.")
    if not templates or isinstance(templates, str):
        raise ConfigError('templates must be a list of texts, such as ["a photo of {}."].')
    target, live, coords = directions_of(source, centre=centre)
    nouns = [(name, noun) for name, entries in lists.items() for noun in entries]
    prompts = [prompt(t, noun) for _, noun in nouns for t in templates]
    vectors = embed(embed_text, prompts, target.shape[1])
    vectors = unit_rows(vectors.reshape(len(nouns), len(templates), -1).mean(axis=1))
    of = np.array([list(lists).index(name) for name, _ in nouns])
    if centre:
        means = np.stack([vectors[of == k].mean(axis=0) for k in range(len(lists))])
        origin = means.mean(axis=0) if text_direction is None else np.asarray(text_direction, dtype=np.float64)
        vectors = unit_rows(vectors - origin)
    cosine = target @ vectors.T
    score = np.stack([cosine[:, of == k].mean(axis=1) for k in range(len(lists))])
    score[:, ~live] = np.nan
    ordered = np.sort(score, axis=0)
    names = np.array(list(lists))
    best = np.where(live, names[np.where(live, score, 0.0).argmax(axis=0)], "")
    out = xr.Dataset(
        {
            "score": (("category_name", "voxel"), score),
            "category": ("voxel", best),
            "margin": ("voxel", ordered[-1] - ordered[-2]),
        },
        coords={**coords, "category_name": names},
    )
    out.attrs = {"n_templates": len(templates), "centred": int(centre)}
    out.attrs["provenance"] = provenance(
        step="categorise", categories={k: list(v) for k, v in lists.items()}, templates=list(templates), centre=centre
    )
    return out
