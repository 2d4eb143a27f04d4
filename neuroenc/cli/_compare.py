"""``neuroenc compare``: feature spaces, cores and readouts side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroenc.cli._errors import clean_errors
from neuroenc.workflows._examples import example_or_file, examples_help

__all__ = ["compare"]


@clean_errors
def compare(
    config: Annotated[Path | None, typer.Argument(help="A TOML config.")] = None,
    example: Annotated[str | None, typer.Option(help=examples_help("examples_compare"))] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; default neuroenc-compare-NAME.")] = None,
    mirror: Annotated[Path | None, typer.Option(help="Folder with data sets, tried before downloads.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="table.key=value, replaces a setting.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; the numbers do not depend on it.", min=1)] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Compare feature spaces, cores and readouts on the same rows with the same budget; statistics and a report."""
    from neuroenc.workflows import read_compare_config

    settings, name = example_or_file(config, example, "examples_compare", read_compare_config, set_)
    # Only now, so that a wrong setting is told before torch is loaded.
    from neuroenc.workflows import run_comparison

    folder = out or Path(f"neuroenc-compare-{name}")
    run_comparison(settings, folder, mirror=mirror, workers=workers, progress=not quiet, say=typer.echo)
