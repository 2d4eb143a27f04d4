"""`train_space`: a feature space of one's own captions, in a folder that embedders read."""

from __future__ import annotations

import inspect
import os
import shutil
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroenc._core.checkpoints import Checkpoint
from neuroenc._core.checks import at_least, check_whole, one_of, share
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import output_folder
from neuroenc._core.provenance import provenance
from neuroenc._core.store import content_key
from neuroenc._core.tables import check_columns, read_table
from neuroenc._core.weights import write_folder
from neuroenc._version import __version__
from neuroenc.data import Stimuli, find_pictures
from neuroenc.embedding._losses import DIRECTIONS, MIXES
from neuroenc.embedding.spaces._folder import SPACE, is_space, marks_of, plain
from neuroenc.embedding.spaces._static import fit_static

if TYPE_CHECKING:
    from neuroenc.embedding._embedders import TextEmbedder

_TRAINED = {"epochs": 5, "batch_size": 8192, "learning_rate": 0.01, "soup": 1}
_TOWERS = {
    "dims": 300,
    "loss": "hinge",
    "margin": 0.2,
    "negatives": "both",
    "temperature": 0.05,
    "focal": 0.0,
    "mix": "none",
    "batches": "random",
    "epochs": 40,
    "batch_size": 128,
    "learning_rate": 0.001,
    "soup": 1,
}
#: Settings of each kind of space, and their defaults.
KINDS: dict[str, dict[str, Any]] = {
    "bow": {"dims": 300, "min_count": 2},
    "ngrams": {"dims": 300},
    "ppmi": {"dims": 300, "min_count": 2, "window": 5, "pooling": "sif"},
    "sgns": {"dims": 300, "min_count": 2, "window": 5, "pooling": "sif", **_TRAINED},
    "ranked": {"tower": "bow", "min_count": 2, **_TOWERS},
    "grounded": {**_TOWERS, "epochs": 10},  # a minute each for 25,000 captions on two cores
    "nested": {
        "base": "minilm",
        "layers": [],
        "nested": True,
        "prefixes": [],
        "align": 1.0,
        **_TOWERS,
        "dims": 256,
        "loss": "info_nce",
    },
    "rendered": {
        "dims": 300,
        "layer": "block7",
        "grid": 4,
        "size": 14,
        "height": 64,
        "width": 256,
        "typos": 0.1,
        "variants": 2,
        "temperature": 0.05,
        "epochs": 30,
        "batch_size": 128,
        "learning_rate": 0.001,
        "soup": 1,
    },
}
#: Kinds that learn which captions belong to one stimulus, or to its picture.
_PAIRED = ("ranked", "grounded", "nested")
_CHOICES = {
    "pooling": ("mean", "sif"),
    "tower": ("bow", "ngrams", "gru"),
    "loss": ("hinge", "info_nce"),
    "negatives": DIRECTIONS,
    "mix": MIXES,
    "batches": ("random", "hard"),
}
_FIT = ("epochs", "batch_size", "learning_rate", "soup")


def train_space(
    kind: str,
    captions: Any,
    out: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | bool | None = None,
    image_model: str = "efficientnet-lite0",
    held_out: Any = (),
    miner: Callable[..., Any] | None = None,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> TextEmbedder:
    """Train a text space, or a joint one of texts and images, on your own captions alone.

    The folder is a model like any other: ``TextEmbedder("FOLDER")``, and ``ImageEmbedder("FOLDER")`` where pictures
    were given. It remembers hashes of the stimuli that it was trained on, and a comparison refuses it where one of them
    is a test stimulus.

    Parameters
    ----------
    kind : {"bow", "ngrams", "ppmi", "sgns", "ranked", "grounded", "nested", "rendered"}
        - "bow": inverse-frequency weighted words, reduced by singular value decomposition (latent semantic analysis);
        - "ngrams": the same of hashed runs of three to five letters;
        - "ppmi": word vectors by positive pointwise mutual information and singular value decomposition;
        - "sgns": word vectors by skip-gram with negative sampling;
        - "ranked": a text ``tower`` ("bow", "ngrams" or "gru") that ranks what belongs together first;
        - "grounded": the same from characters alone, by a bidirectional GRU with vectorial attention pooling;
        - "nested": linear maps of the frozen vectors of another text model (and of ``image_model``), trained so that
          the first dimensions are a space too, and shallow ``layers`` of the model (2D Matryoshka). They are layers of
          the folder: ``TextEmbedder("FOLDER", layer="first64")``, "block2", "block2-first64";
        - "rendered": pictures of the texts, through a frozen image network and a linear map by which a text lies with
          its misspelt forms and apart from its letters scrambled (`perturbation_contrast`).
    captions : Stimuli, DataFrame or path
        A table, or a CSV, with the columns ``stimulus`` and ``caption``, one row a caption.
    out : path
        Folder of the space. A training that was killed goes on there; a space that is finished is not made again.
    images : path, optional
        Of "ranked", "grounded" and "nested": a folder with the picture of each stimulus, named by its id; True takes
        the pictures of the Stimuli. Without pictures, two captions of a stimulus belong together.
    image_model : str
        Backbone of the image tower, which is a linear map of its frozen vectors; of "rendered", the network that
        reads the pictures of texts.
    held_out : sequence of str
        Stimuli that take no part, nor do captions of others that are equal to theirs.
    miner : callable, optional
        Of "ranked", "grounded" and "nested": finds hard negatives before each epoch, such as
        ``functools.partial(neuroenc.retrieval.mine_hard_negatives, k=2)``.
    seed : int
    progress : bool
    **settings
        ``dims`` of a vector (0 with "bow" and "ngrams": as many as there are words or hashed n-grams); ``min_count`` of
        texts that a word must stand in; ``window`` of neighbours in words; ``pooling`` of word vectors: "mean", or
        "sif", which gives frequent words less weight and takes the common direction out; ``tower``; ``loss`` "hinge"
        with ``margin`` and ``negatives`` ("image", "text" or "both"), or "info_nce" with ``temperature``, ``focal`` and
        ``mix``; ``batches`` of stimuli at "random", or "hard", of those that the miner finds hard for each other,
        without further negatives; ``epochs``, ``batch_size``, ``learning_rate``; ``soup``: the mean of the weights
        after so many last epochs. Of "nested": ``base``, a text model by name or folder, and ``layers`` of it besides
        its own vector; ``prefixes``, numbers of first dimensions (by default halves of ``dims``, down to 8), or
        ``nested=False``, a plain linear map; ``align``, the weight of the divergence of `nested_loss`. Of
        "rendered": ``layer`` of the image network, averaged on a ``grid`` of so many rows and columns; ``height`` and
        ``width`` of the pictures and ``size`` of the letters, pixels; ``typos``, the share of letters that are
        mistyped, and ``variants``, how many misspelt forms of each text there are.

    Raises
    ------
    ConfigError
        An unknown kind or setting, or one that the kind does not read.
    DataError
        Captions without a common word, stimuli with one caption only, or pictures that are missing.

    References
    ----------
    Levy, Goldberg & Dagan (2015), TACL 3. Mikolov et al. (2013), NeurIPS. Arora, Liang & Ma (2017), ICLR. Merkx & Frank
    (2019), Natural Language Engineering 25. Kusupati et al. (2022), NeurIPS. Li et al. (2024), arXiv:2402.14776.
    Xiao et al. (2024), arXiv:2402.08183.

    Examples
    --------
    >>> import tempfile
    >>> from neuroenc.data import simulate_world
    >>> out = tempfile.mkdtemp() + "/words"
    >>> words = train_space("ppmi", simulate_world(60), out, dims=8, progress=False)
    >>> words.embed(["a red house"]).shape
    (1, 8)
    """
    from neuroenc.embedding._embedders import ImageEmbedder, TextEmbedder

    found = space_settings(kind, settings)
    towers = kind in _PAIRED
    if not towers and (images is not None or miner is not None):
        raise ConfigError(
            f'kind "{kind}" reads captions only. Next step: leave images and miner out, or kind="ranked".'
        )
    if found.get("batches") == "hard" and miner is None:
        raise ConfigError('batches="hard" needs a miner, which says what is hard. Next step: miner=, or --mine 8.')
    check_whole("seed", seed, least=0)
    stimuli = _left(_stimuli(captions, images), held_out)
    vectors = image_hash = None
    if images is not None and images is not False:
        base = ImageEmbedder(image_model, progress=progress)
        vectors, image_hash = base.embed(stimuli).values, base.backbone.weights_hash()
        if vectors.ndim != 2:
            raise ConfigError(f"image_model={image_model!r} gives no vectors but {vectors.shape[1:]} a picture.")
    bases, base_hash = _bases(found, progress) if kind == "nested" else ([], None)
    drawn = None
    if kind == "rendered":
        from neuroenc.embedding.spaces._rendered import FrozenText

        drawn = FrozenText(image_model, found)
        base_hash, image_hash = drawn.weights_hash(), drawn.base.weights_hash()
    texts = [c for several in stimuli.captions or () for c in several]
    owner = np.repeat(np.arange(len(stimuli)), [len(several) for several in stimuli.captions or ()])
    marks = marks_of(stimuli, pictures=vectors is not None)
    if bases and is_space(found["base"]):
        # What a base was trained on has been seen by the space too.
        older = bases[0].backbone.marks  # type: ignore[attr-defined]
        marks = {name: np.union1d(values, older[name]) for name, values in marks.items()}
    about = [kind, found, seed, texts, owner, image_hash, base_hash, _describe(miner), marks, __version__]
    key, folder = content_key(*about), Path(out).expanduser()
    name = str(folder)
    if is_space(name):
        embedder = TextEmbedder(name)
        if embedder.backbone.record["key"] == key:  # type: ignore[attr-defined]
            return embedder
    output_folder(folder)
    record: dict[str, Any] = {"space": kind, "settings": found, "key": key, "seed": seed}
    fit: Any = None
    if "epochs" in found:
        from neuroenc._core.training import train

        how = {setting: found[setting] for setting in _FIT}
        checkpoint = Checkpoint(folder / ".training", key)
        fit = partial(train, **how, seed=seed, checkpoint=checkpoint, show=progress, desc=f"training {kind}")
    if drawn is not None:
        from neuroenc.embedding.spaces._rendered import fit_rendered

        reader = TextEmbedder(progress=progress)
        reader.backbone = drawn
        model = fit_rendered(texts, lambda some: reader.embed(some).values, found, fit, seed)
        tensors = {k: v.detach().numpy() for k, v in model.state_dict().items()}
        record |= {"words": [], "width": found["dims"], "base_model": drawn.name, "base_hash": base_hash}
        record |= {"image_model": image_model, "image_hash": image_hash}
    elif towers:
        from neuroenc.embedding.spaces._towers import fit_towers

        frozen = [base.embed(texts).values for base in bases]
        model = fit_towers(kind, texts, owner, vectors, found, fit, miner, seed, frozen)
        tensors = {k: v.detach().numpy() for k, v in model.state_dict().items()}
        record |= {"words": [] if bases else model["text"].words, "width": found["dims"]}
        if bases:
            record |= {"base_model": found["base"], "base_hash": base_hash}
        if vectors is not None:
            record |= {"image_model": image_model, "image_hash": image_hash}
    else:
        space = fit_static(kind, texts, found, fit, seed)
        tensors = {f"static.{k}": v for k, v in space.arrays.items()}
        record |= {"words": space.words, "width": int(space.encode([texts[0]]).shape[1])}
    record |= {"stimuli": len(stimuli), "captions": len(texts)}
    record["provenance"] = provenance(step="train_space", **record | {"words": len(record["words"])})
    write_folder(folder, SPACE, record, {**tensors, **marks})
    shutil.rmtree(folder / ".training", ignore_errors=True)
    return TextEmbedder(name)


def space_settings(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a kind of space: those that are given, and defaults of the others.

    Parameters
    ----------
    kind : str
        As of `train_space`.
    settings : mapping

    Raises
    ------
    ConfigError
        An unknown kind, a setting that the kind does not read, or an illegal value.

    Examples
    --------
    >>> space_settings("bow", {"dims": 20})
    {'dims': 20, 'min_count': 2}
    """
    one_of("kind of space", kind, KINDS)
    for name, value in settings.items():
        if name not in KINDS[kind]:
            readers = [k for k, known in KINDS.items() if name in known]
            step = f"{name} is read by {', '.join(readers)}." if readers else ""
            raise ConfigError(unknown_name(f"setting of a space of kind {kind!r}:", name, KINDS[kind], step))
        if name in _CHOICES:
            one_of(name, value, _CHOICES[name])
        elif name == "typos":
            share(name, value)
        elif isinstance(default := KINDS[kind][name], (bool, str, list)):
            if type(value) is not type(default):
                raise ConfigError(f"{name}={value!r} is not legal; it must be like {default!r}.")
        elif isinstance(KINDS[kind][name], int):
            check_whole(name, value, least=0 if name == "dims" and kind in ("bow", "ngrams") else 1)
        else:
            at_least(name, value, above=name in ("learning_rate", "temperature"))
    found = {**KINDS[kind], **settings}
    if kind == "nested":
        found |= _prefixes(found)
    if kind == "grounded" and found["dims"] % 2:
        raise ConfigError(
            f"dims={found['dims']} of a grounded space; it must be even, half for each reading direction."
        )
    if found.get("soup", 1) > found.get("epochs", 1):
        raise ConfigError(f"soup={found['soup']} of {found['epochs']} epochs; it must be at most epochs.")
    return found


def _prefixes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of first dimensions of a nested space, the most first.

    >>> _prefixes({"dims": 64, "prefixes": [], "nested": True, "layers": []})
    {'prefixes': [64, 32, 16, 8]}
    """
    dims, given = settings["dims"], settings["prefixes"]
    if not settings["nested"]:
        found = {name: settings[name] for name in ("prefixes", "layers") if settings[name]}
        if found:
            raise ConfigError(f"{found} with nested=False, a plain linear map. Next step: leave them or nested out.")
        return {"prefixes": [dims]}
    for value in given:
        if check_whole("prefix", value) > dims:
            raise ConfigError(f"prefixes={given} of dims={dims}; legal are 1 to {dims}.")
    halves = [dims >> n for n in range(dims.bit_length()) if dims >> n >= 8]
    return {"prefixes": sorted({dims, *(given or halves)}, reverse=True)}


def _bases(settings: dict[str, Any], progress: bool) -> tuple[list[TextEmbedder], str]:
    """Embedders of the layers that a nested space maps, the deepest last; their names in the model's own order."""
    from neuroenc.embedding._embedders import TextEmbedder

    if is_space(settings["base"]):
        # The place may be told from where the command ran, and the space is read from elsewhere.
        settings["base"] = str(Path(settings["base"]).expanduser().resolve())
    whole = TextEmbedder(settings["base"], progress=progress)
    several = {layer: TextEmbedder(settings["base"], layer=layer, progress=progress) for layer in settings["layers"]}
    settings["layers"] = sorted(several, key=whole.layers().index)
    return [*(several[layer] for layer in settings["layers"]), whole], whole.backbone.weights_hash()


def _stimuli(captions: Any, images: Any) -> Stimuli:
    """Captions by stimulus, those without any left out."""
    if isinstance(captions, Stimuli):
        found = captions
        if found.captions is None:
            raise DataError(f"{found!r} has no captions.")
        found = found.sel([i for i, c in zip(found.ids, found.captions) if c])
    else:
        columns = ["stimulus", "caption"]
        if isinstance(captions, (str, os.PathLike)):
            table = read_table(captions, columns, what="captions")
        else:
            table = check_columns(captions, columns, "captions")
        told: dict[str, list[str]] = {}
        for n, (stimulus, caption) in enumerate(zip(table["stimulus"], table["caption"])):
            if not isinstance(caption, str) or not caption.strip() or not str(stimulus).strip():
                raise DataError(f"captions, row {n + 1}: stimulus or caption is empty. Next step: leave that row out.")
            told.setdefault(unicodedata.normalize("NFC", str(stimulus)), []).append(caption)
        found = Stimuli(list(told), captions=list(told.values()), source=str(captions)[:200])  # type: ignore[arg-type]
    if not len(found):
        raise DataError("there are 0 captions to train on.")
    if images is True and found.images is None:
        raise DataError(f"images=True, and {found!r} has no pictures. Next step: images=FOLDER.")
    if isinstance(images, (str, os.PathLike)):
        found = Stimuli(found.ids, find_pictures(images, found.ids), found.captions, source=found.source)
    return found


def _left(stimuli: Stimuli, held_out: Any) -> Stimuli:
    """Stimuli without those held out, and without captions that are equal to theirs."""
    if isinstance(held_out, str):
        raise ConfigError(f"held_out={held_out!r} is one text; legal is a list of stimuli.")
    names = {str(i) for i in held_out}
    if not names:
        return stimuli
    stimuli.index_of(sorted(names))
    pairs = list(zip(stimuli.ids.tolist(), stimuli.captions or ()))
    theirs = {plain(c) for i, several in pairs for c in several if i in names}
    kept = {i: [c for c in several if plain(c) not in theirs] for i, several in pairs if i not in names}
    kept = {i: several for i, several in kept.items() if several}
    if not kept:
        raise DataError(f"all {len(stimuli)} stimuli are held out, or have captions of those that are.")
    rest = stimuli.sel(list(kept))
    return Stimuli(rest.ids, rest.images, list(kept.values()), source=rest.source)  # type: ignore[arg-type]


def _describe(miner: Any) -> str:
    """What a miner is, the same in every process."""
    if miner is None:
        return ""
    arguments = ""
    if isinstance(miner, partial):
        arguments, miner = f"{miner.args} {sorted(miner.keywords.items())}", miner.func
    named = inspect.isroutine(miner) or inspect.isclass(miner)
    return f"{getattr(miner, '__module__', '')}.{miner.__qualname__ if named else miner!r} {arguments}"
