"""``neuroenc compare``: feature spaces, cores and readouts side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroenc._util.errors import ConfigError
from neuroenc.cli._errors import clean_errors

__all__ = ["compare"]


@clean_errors
def compare(
    config: Annotated[Path | None, typer.Argument(help="A TOML config.")] = None,
    example: Annotated[str | None, typer.Option(help="A shipped comparison: world, v4.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; default neuroenc-compare-NAME.")] = None,
    mirror: Annotated[Path | None, typer.Option(help="Folder with data sets, tried before downloads.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="table.key=value, replaces a setting.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; the numbers do not depend on it.", min=1)] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Compare feature spaces, cores and readouts on the same rows with the same budget; statistics and a report."""
    from neuroenc.workflows import (
        example_compare_config,
        list_compare_examples,
        read_compare_config,
        run_comparison,
    )

    if (config is None) == (example is None):
        raise ConfigError(f"give a CONFIG.toml or --example NAME (one of {', '.join(list_compare_examples())}).")
    settings = example_compare_config(example, set_) if example else read_compare_config(config or "", set_)
    folder = out or Path(f"neuroenc-compare-{example or (config.stem if config else '')}")
    run_comparison(settings, folder, mirror=mirror, workers=workers, progress=not quiet, say=typer.echo)
