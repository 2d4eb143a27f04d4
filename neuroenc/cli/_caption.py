"""``neuroenc caption``: what voxels prefer, in words, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroenc.cli._errors import clean_errors
from neuroenc.workflows._examples import example_or_file, examples_help

__all__ = ["caption"]


@clean_errors
def caption(
    config: Annotated[Path | None, typer.Argument(help="A TOML config.")] = None,
    example: Annotated[str | None, typer.Option(help=examples_help("examples_caption"))] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; default neuroenc-caption-NAME.")] = None,
    mirror: Annotated[Path | None, typer.Option(help="Folder with data sets, tried before downloads.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="table.key=value, replaces a setting.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Caption voxels: weights projected onto natural images, decoded into language, checked; a report."""
    from neuroenc.workflows import read_caption_config

    settings, name = example_or_file(config, example, "examples_caption", read_caption_config, set_)
    # Only now, so that a wrong setting is told before torch is loaded.
    from neuroenc.workflows import caption as work

    work(settings, out or Path(f"neuroenc-caption-{name}"), mirror=mirror, progress=not quiet, say=typer.echo)
