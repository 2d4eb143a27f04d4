"""What can be known before computing: files, data sets, models and packages that a config names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import check_readable_file
from neuroenc._core.optional import require
from neuroenc._core.tables import read_table
from neuroenc.workflows._caption_config import CaptionConfig
from neuroenc.workflows._compare_config import CompareConfig
from neuroenc.workflows._config import DataConfig, FeaturesConfig, RunConfig

__all__ = ["check_caption", "check_compare", "check_run"]


def check_run(config: RunConfig, mirror: str | os.PathLike[str] | None = None) -> None:
    """Refuse what ``neuroenc run`` could not use.

    Raises
    ------
    ConfigError, DataError
        A file that is not there or cannot be read, an unknown data set, option, model or layer.
    ModuleNotFoundError
        A package that is needed later; the extra that brings it is named.
    """
    require("matplotlib", "brain")
    _check_data(config.data, mirror)
    _check_space("features", config.features, config.data)
    if config.captions:
        captions = config.captions
        if captions.bank == "captions":
            _text_model("captions.model", captions.model)
        else:
            _image_model("captions.model", captions.model)
            _text_model("captions.model", captions.model)
        _needs("captions", 'bank = "stimuli"', config.data, captions.bank == "stimuli", False)
        _needs("captions", 'caption_bank = "stimuli"', config.data, False, captions.caption_bank == "stimuli")
        for key, own in (("bank", ("stimuli", "captions")), ("caption_bank", ("stimuli",))):
            _check_set(f"captions.{key}", getattr(captions, key), own)


def check_caption(config: CaptionConfig, mirror: str | os.PathLike[str] | None = None) -> None:
    """Refuse what ``neuroenc caption`` could not use; see `check_run`."""
    require("matplotlib", "brain")
    if config.analysis.words == "spacy":
        require("spacy", "language")
    if config.data.name != "world":
        _check_data(config.data, mirror)
    space, decoder = config.space, config.decoder
    _needs("space", f'stimuli = "{space.stimuli}"', config.data, space.stimuli == "image", space.stimuli == "captions")
    bank = config.bank.source if decoder.caption_bank == "bank" else decoder.caption_bank
    if decoder.kind != "prefix" and bank == "stimuli":
        _needs("decoder", f'kind = "{decoder.kind}"', config.data, False, True)
    if space.stimuli == "image":
        _image_model("space.model", space.model, space.pretrained)
    _text_model("space.model", space.model, space.pretrained)
    if not Path(config.bank.source).is_dir():
        _check_set("bank.source", config.bank.source, ("stimuli", "unseen", "captions"), "the folder of a bank")
    _check_set("decoder.caption_bank", decoder.caption_bank, ("bank", "stimuli", "unseen"))
    shipped = ("world", "photo")
    if decoder.kind != "retrieval" and decoder.captioner not in shipped:
        if not Path(decoder.captioner).is_dir():
            raise ConfigError(
                unknown_name("decoder.captioner:", decoder.captioner, (*shipped, "a folder of PrefixDecoder.save"))
            )
        check_readable_file(Path(decoder.captioner) / "decoder.json", "captioner")


def check_compare(config: CompareConfig, mirror: str | os.PathLike[str] | None = None) -> None:
    """Refuse what ``neuroenc compare`` could not use; see `check_run`."""
    require("matplotlib", "brain")
    if not config.data.world:
        _check_data(config.data, mirror, tuple(config.data.join))
    for name, space in config.features.items():
        _check_space(f"features.{name}", space, config.data)
        if space.kind == "dense":
            _text_model(f"features.{name}.model", space.model, space.pretrained)
            if space.table:
                read_table(space.table, ("stimulus", "row", "column", "caption"), what=f"[features.{name}] table")
            elif not config.data.world:
                raise ConfigError(f'[features.{name}] kind = "dense" needs table, a CSV of captions of grid cells.')


def _check_data(config: DataConfig, mirror: str | os.PathLike[str] | None, joined: tuple[str, ...] = ()) -> None:
    if config.name:
        manifest = data.load_manifest(config.name)
        legal = data.loader_options(manifest)
        for option in (*config.options, *joined):
            if option not in legal and option != "root":
                raise ConfigError(unknown_name(f"option of {config.name}:", option, [*legal, "root"]))
        root = config.options.get("root")
        if root and not Path(str(root)).expanduser().is_dir():
            raise DataError(f"[data.options] root: no folder {root}. Next step: check the path.")
        if not root and not manifest.files and data.presence(manifest, mirror) == "no":
            raise DataError(
                f"{manifest.name} cannot be fetched: {manifest.access} Next step: tell where it is, "
                "--set data.options.root=FOLDER."
            )
        return
    path = Path(config.responses)
    if not path.exists():
        raise DataError(f"[data] responses: no file {path}.")
    if path.suffix != ".zarr":
        check_readable_file(path, "[data] responses")
    if config.samples:
        read_table(config.samples, ["stimulus"], what="[data] samples")
    if config.captions:
        read_table(config.captions, ["stimulus", "caption"], what="[data] captions")
    # A region may be one label of an image: "areas.nii.gz:3".
    for key, name in (("mask", config.mask), *((f"rois.{k}", v) for k, v in config.rois.items())):
        if name:
            check_readable_file(re.sub(r":[^/:]*$", "", name) if not Path(name).exists() else name, f"[data] {key}")
    if config.images and not Path(config.images).is_dir():
        raise DataError(f"[data] images: {config.images} is no folder. Next step: check the path.")


def _check_space(where: str, config: FeaturesConfig, source: DataConfig) -> None:
    if config.kind == "file":
        if not Path(config.file).exists():
            raise DataError(f"[{where}] file: no file {config.file}.")
        if not config.file.endswith(".zarr"):
            check_readable_file(config.file, f"[{where}] file")
        if config.samples:
            read_table(config.samples, ["stimulus"], what=f"[{where}] samples")
    elif config.kind == "captions":
        _needs(where, 'kind = "captions"', source, False, True)
        _text_model(f"{where}.model", config.model, config.pretrained)
    elif config.kind in ("image", "pixels"):
        _needs(where, f'kind = "{config.kind}"', source, True, False)
        if config.kind == "image":
            _image_model(
                f"{where}.model",
                config.model,
                config.pretrained,
                layer=config.layer or None,
                pooling=config.pooling if config.pooling != "" else None,
                preprocessing=config.preprocessing or None,
            )


def _needs(where: str, what: str, source: DataConfig, images: bool, captions: bool) -> None:
    """Pictures and captions of the user's own stimuli, where a setting asks for them."""
    for name, wanted in (("images", images), ("captions", captions)):
        if wanted and source.responses and not getattr(source, name):
            raise ConfigError(f"[{where}] {what} needs [data] {name}.")


def _image_model(where: str, model: str, pretrained: str = "", **options: Any) -> None:
    from neuroenc.embedding import ImageEmbedder

    _named(where, lambda: ImageEmbedder(model, pretrained or None, progress=False, **options))


def _text_model(where: str, model: str, pretrained: str = "") -> None:
    from neuroenc.embedding import TextEmbedder

    _named(where, lambda: TextEmbedder(model, pretrained or None, progress=False))


def _named(where: str, make: Any) -> None:
    """A description of the model is made, no weights are read; errors say which setting asked for it."""
    try:
        make()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_set(where: str, name: str, own: tuple[str, ...], also: str = "") -> None:
    if name in own:
        return
    if also and "/" in name:
        raise ConfigError(f"{where}: no folder {name}. Next step: {also}, or one of {', '.join(own)}.")
    known = [m.name for m in data.list_manifests()]
    if name not in known:
        raise ConfigError(unknown_name(f"value of {where}:", name, [*own, *known]))
