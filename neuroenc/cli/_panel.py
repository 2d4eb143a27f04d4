"""``neuroenc panel``: models on frozen tasks, tables of them, and fewer tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroenc.cli._errors import clean_errors

app = typer.Typer(
    no_args_is_help=True, help="Panels: models on frozen tasks as one table, ranks, and which few tasks would do."
)

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Panel = Annotated[str, typer.Option(help="Name of a panel, or a TOML file of one's own.")]


@app.command()
@clean_errors
def run(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="BACKBONE[@WEIGHTS][:LAYER], folder of a trained space, or features (.nc, .zarr); may be repeated."
        ),
    ] = None,
    panel: Panel = "offline-1",
    out: Annotated[Path | None, typer.Option(help="Output folder; default neuroenc-panel-NAME.")] = None,
    mirror: Annotated[Path | None, typer.Option(help="Folder with data sets; nothing is downloaded.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash files anew that have not changed by size and times.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Score models on every task of a panel, rank them, and write a table that can be cited."""
    from neuroenc import study

    folder = out or Path(f"neuroenc-panel-{Path(panel).stem}")
    study.panel_run(panel, model or [], folder, mirror=mirror, device=device, progress=not quiet, say=typer.echo)


@app.command()
@clean_errors
def table(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Output folders of `panel run` and `compare`; offline-1: the shipped backbones."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for panel.csv, ranks.csv, summary.json and report/.")],
) -> None:
    """Join runs of one panel, and comparisons, into one table of models."""
    from neuroenc import study

    study.panel_table(folders, out, say=typer.echo)


@app.command()
@clean_errors
def select(
    table: Annotated[Path, typer.Argument(help="A panel.csv, or the folder that holds one.")],
    out: Annotated[Path | None, typer.Option(help="Folder for tasks.csv, coverage.csv and selection.json.")] = None,
    track: Annotated[str | None, typer.Option(help="images, words or compare; default the only one.")] = None,
    threshold: Annotated[float, typer.Option(help="Spearman r from which on a predicted task is dropped.")] = 0.8,
    least_reliability: Annotated[float, typer.Option(help="Split-half reliability that a task needs.")] = 0.8,
    factor: Annotated[
        list[str] | None, typer.Option(help="Column whose values each keep a task; default data, region, metric.")
    ] = None,
    held_out: Annotated[list[str] | None, typer.Option(help="Model that chooses no task; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
) -> None:
    """Reduce the tasks of a table to a small panel, and say what that costs beside random panels."""
    from neuroenc import study

    study.panel_select(
        table,
        out,
        track=track,
        factors=tuple(factor or ("data", "region", "metric")),
        threshold=threshold,
        least_reliability=least_reliability,
        held_out=tuple(held_out or ()),
        seed=seed,
        say=typer.echo,
    )


@app.command()
@clean_errors
def show(panel: Panel = "offline-1") -> None:
    """Tasks of a panel, its data with licences, and how it is cited."""
    from neuroenc.study.config.panel import read_panel

    found = read_panel(panel)
    typer.echo(f"{found.name}, version {found.version} ({found.content_hash()[:16]}): {found.title}")
    typer.echo(found.tasks()[["task", "track", "data", "subject", "region", "metric"]].to_string(index=False))
    for name, record in found.data.items():
        typer.echo(f"{name}: {record.licence}. {record.citation}")
