"""Unsupervised parsers as files: safetensors and JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import sha256_file
from neuroenc._core.provenance import provenance
from neuroenc.captions._model_folder import read_record, reading, whole_folder, write_record
from neuroenc.captions.analysis._syntactic_texts import Vocabulary

if TYPE_CHECKING:
    from neuroenc.captions.analysis._syntactic_parser import SyntacticDistanceParser

__all__ = ["load", "save"]

_FORMAT = 1
_FILES = ("*.json", "*.safetensors", "README.md")
_SETTINGS = (
    "dim",
    "layers",
    "heads",
    "parser_layers",
    "parser_width",
    "dropout",
    "pattern",
    "min_count",
    "max_vocabulary",
    "max_length",
    "function_words",
    "max_words",
    "head",
    "seed",
)


def save(parser: SyntacticDistanceParser, folder: str | os.PathLike[str]) -> Path:
    """Write ``parser.safetensors`` and, last, ``parser.json``."""
    from safetensors.torch import save_file

    if parser._net is None:
        raise ConfigError("this parser has learned nothing yet; there is nothing to save. Next step: fit(captions).")
    folder = Path(folder)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in parser._net.state_dict().items()}
    record = {
        "format": _FORMAT,
        "settings": {name: getattr(parser, name) for name in _SETTINGS},
        "structured": parser._net.parser is not None,
        "vocabulary": parser._vocabulary.words,
        "function_words": parser.function_words_,
        "training": {k: v for k, v in parser.training_.items() if k != "losses"},
        "provenance": provenance(model="SyntacticDistanceParser"),
    }
    with whole_folder(folder, _FILES) as temporary:
        save_file(tensors, temporary / "parser.safetensors")
        write_record(temporary, "parser.json", record)
    return folder


def load(folder: str | os.PathLike[str], device: str = "auto") -> SyntacticDistanceParser:
    """Read a parser.

    Raises
    ------
    DataError
        There is none, a newer format wrote it, or its file was changed.
    """
    path = Path(folder)
    needed = ("format", "settings", "structured", "vocabulary", "function_words", "training")
    record = read_record(path, "parser.json", "parser", needed)
    if record["format"] != _FORMAT:
        raise DataError(f"{path} has format {record['format']!r}; this version reads {_FORMAT}.")
    with reading(path, "parser"):
        return _build(path, record, device)


def _build(path: Path, record: dict[str, Any], device: str) -> SyntacticDistanceParser:
    from safetensors.torch import load_file

    from neuroenc.captions.analysis._syntactic_parser import SyntacticDistanceParser

    if "sha256" in record and sha256_file(path / "parser.safetensors") != record["sha256"]:
        raise DataError(f"{path / 'parser.safetensors'} is not the file that was saved. Next step: copy it again.")
    out = SyntacticDistanceParser(device=device, **record["settings"])
    out._vocabulary = Vocabulary(record["vocabulary"])
    out.function_words_ = list(record["function_words"])
    out.training_ = {"losses": [], **record["training"]}
    net = out._start(record["structured"])
    net.load_state_dict(load_file(path / "parser.safetensors"))
    out._net = net.eval()
    return out
