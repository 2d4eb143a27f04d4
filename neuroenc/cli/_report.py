"""``neuroenc report``: figures and PDF of a finished report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroenc.cli._errors import clean_errors

app = typer.Typer(no_args_is_help=True, help="Figures for print, and PDF, of a finished report.")

Run = Annotated[Path, typer.Argument(help="Folder of neuroenc caption or demo.")]


@app.command()
@clean_errors
def figure(
    run: Run,
    roi: Annotated[str, typer.Option(help="Region.")],
    file: Annotated[Path | None, typer.Option(help="Ends in .svg, .pdf or .png; default REGION.svg.")] = None,
    width: Annotated[str, typer.Option(help="double (183 mm) or single (89 mm).")] = "double",
) -> None:
    """Write the figure of a region: map, words with intervals, best voxels, checks, sentence-level scores."""
    from neuroenc.report import write_region_figure as work

    typer.echo(f"written: {work(run, roi, file or Path(f'{roi}.svg'), width=width)}")


@app.command()
@clean_errors
def pdf(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of its report.")],
    roi: Annotated[str | None, typer.Option(help="Print the page of this region instead of the report.")] = None,
    file: Annotated[Path | None, typer.Option(help="The PDF; default beside the page.")] = None,
) -> None:
    """Print a report, or the page of a region, as PDF (needs playwright and a Chromium)."""
    from neuroenc.report import print_report as work

    typer.echo(f"written: {work(run, file, roi=roi)}")
