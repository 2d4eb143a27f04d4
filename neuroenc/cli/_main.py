"""Commands and groups of commands; each does its imports when it runs, so that help is quick."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from neuroenc._version import __version__
from neuroenc.cli import (
    _bank,
    _cache,
    _config,
    _contrast,
    _data,
    _encoder,
    _export,
    _group,
    _panel,
    _plan,
    _predict,
    _report,
    _serve,
    _space,
    _study,
)
from neuroenc.cli._errors import clean_errors

app = typer.Typer(
    name="neuroenc",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Voxelwise encoding models of human visual cortex.",
)
app.add_typer(_data.app, name="data")
app.add_typer(_cache.app, name="cache")
app.add_typer(_bank.app, name="bank")
app.add_typer(_space.app, name="space")
app.add_typer(_panel.app, name="panel")
app.add_typer(_encoder.app, name="encoder")
app.add_typer(_study.icl, name="icl")
app.add_typer(_config.app, name="config")
app.add_typer(_report.app, name="report")
app.command("run")(_study.run)
app.command("compare")(_study.compare)
app.command("caption")(_study.caption)
app.command("contrast")(_contrast.contrast)
app.command("group")(_group.group)
app.command("plan")(_plan.plan)
app.command("predict")(_predict.predict)
app.command("serve")(_serve.serve)
app.command()(_export.export)

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"neuroenc {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Version.")] = False,
) -> None:
    pass


@app.command()
@clean_errors
def demo(
    out: Annotated[Path, typer.Option(help="Folder for report/, encoder/ and summary.json.")] = Path("neuroenc-demo"),
    seed: Annotated[int, typer.Option(help="Of the simulated world and cortex.", min=0, max=2**32 - 1)] = 0,
    quiet: Quiet = False,
) -> None:
    """The whole path on a simulated world: features, ridge, noise ceilings, voxel captions, report."""
    from neuroenc.study import demo as work

    work(out, seed=seed, progress=not quiet, say=typer.echo)


@app.command()
@clean_errors
def init(
    folder: Annotated[Path, typer.Argument(help="Folder with responses, pictures, tables, masks.")],
    out: Annotated[Path | None, typer.Option(help="The config; default my.toml in the folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a config that is there.")] = False,
) -> None:
    """Look at a folder of data and write a commented config for it."""
    from neuroenc.study.init import init as work

    path = work(folder, out, force)
    typer.echo(path.read_text(encoding="utf-8"), nl=False)
    typer.echo(f"\nwritten: {path}   Next step: neuroenc run {path}")


def main() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows its number instead of ending the run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
