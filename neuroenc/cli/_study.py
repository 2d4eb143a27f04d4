"""``neuroenc run``, ``compare`` and ``caption``: lists of stages of one study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from neuroenc.cli._errors import clean_errors
from neuroenc.study.read import example_or_file, examples_help

Config = Annotated[Path | None, typer.Argument(help="A TOML config.")]
Mirror = Annotated[Path | None, typer.Option(help="Folder with data sets, tried before downloads.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="table.key=value, replaces a setting.")]
Workers = Annotated[int | None, typer.Option(help="Processes; the numbers do not depend on it.", min=1)]
Client = Annotated[str | None, typer.Option(help="Dask cluster: tcp://HOST:PORT of its scheduler, or local:4.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def _work(command: str, config: Path | None, example: str | None, out: Path | None, set_: Any, **options: Any) -> None:
    settings, name = example_or_file(config, example, set_, command)
    # Only now, so that a wrong setting is told before torch is loaded.
    from neuroenc.study import commands

    getattr(commands, command)(settings, out or Path(f"neuroenc-{command}-{name}"), say=typer.echo, **options)


@clean_errors
def run(
    config: Config = None,
    example: Annotated[str | None, typer.Option(help=examples_help("run"))] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; default neuroenc-run-NAME.")] = None,
    mirror: Mirror = None,
    set_: Settings = None,
    workers: Workers = None,
    client: Client = None,
    quiet: Quiet = False,
) -> None:
    """Fit encoders to a data set or to your own arrays, score against noise ceilings, report."""
    _work("run", config, example, out, set_, mirror=mirror, workers=workers, client=client, progress=not quiet)


@clean_errors
def compare(
    config: Config = None,
    example: Annotated[str | None, typer.Option(help=examples_help("compare"))] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; default neuroenc-compare-NAME.")] = None,
    mirror: Mirror = None,
    set_: Settings = None,
    workers: Workers = None,
    client: Client = None,
    quiet: Quiet = False,
) -> None:
    """Compare feature spaces, cores and readouts on the same rows with the same budget; statistics and a report."""
    _work("compare", config, example, out, set_, mirror=mirror, workers=workers, client=client, progress=not quiet)


@clean_errors
def caption(
    config: Config = None,
    example: Annotated[str | None, typer.Option(help=examples_help("caption"))] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; default neuroenc-caption-NAME.")] = None,
    mirror: Mirror = None,
    set_: Settings = None,
    workers: Workers = None,
    client: Client = None,
    quiet: Quiet = False,
) -> None:
    """Caption voxels: weights projected onto natural images, decoded into language, checked; a report."""
    _work("caption", config, example, out, set_, mirror=mirror, workers=workers, client=client, progress=not quiet)
