"""``neuroenc caption``: what voxels prefer, in words, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroenc._util.errors import ConfigError
from neuroenc.cli._errors import clean_errors

__all__ = ["caption"]


@clean_errors
def caption(
    config: Annotated[Path | None, typer.Argument(help="A TOML config.")] = None,
    example: Annotated[str | None, typer.Option(help="A shipped config: world, haxby, v4.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; default neuroenc-caption-NAME.")] = None,
    mirror: Annotated[Path | None, typer.Option(help="Folder with data sets, tried before downloads.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="table.key=value, replaces a setting.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Caption voxels: weights projected onto natural images, decoded into language, checked; a report."""
    from neuroenc.workflows import caption as work
    from neuroenc.workflows import example_caption_config, list_caption_examples, read_caption_config

    if (config is None) == (example is None):
        raise ConfigError(f"give a CONFIG.toml or --example NAME (one of {', '.join(list_caption_examples())}).")
    settings = example_caption_config(example, set_) if example else read_caption_config(config or "", set_)
    folder = out or Path(f"neuroenc-caption-{example or (config.stem if config else '')}")
    work(settings, folder, mirror=mirror, progress=not quiet, say=typer.echo)
