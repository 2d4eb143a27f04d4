"""``neuroenc export``: the maps of a finished run, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroenc.cli._errors import clean_errors

Label = Annotated[str | None, typer.Option(help="BIDS label.")]


@clean_errors
def export(
    run: Annotated[Path, typer.Argument(help="Folder of neuroenc run, demo or caption, or a scores.nc.")],
    bids: Annotated[Path | None, typer.Option(help="Folder of the BIDS derivative.")] = None,
    pycortex: Annotated[Path | None, typer.Option(help="File (.hdf) that pycortex opens: cortex.load.")] = None,
    transform: Annotated[str | None, typer.Option(help="Of the volume, in pycortex's database.")] = None,
    vertices: Annotated[
        tuple[int, int] | None, typer.Option(help="Of the left and right surface in pycortex; default of the space.")
    ] = None,
    maps: Annotated[list[str] | None, typer.Option("--map", help="A score; may be given again. Default all.")] = None,
    subject: Annotated[str | None, typer.Option(help="Label of sub; default as the scores name it.")] = None,
    session: Label = None,
    task: Label = None,
    space: Annotated[str | None, typer.Option(help="Label of space; default as the scores name it.")] = None,
    volume_space: Annotated[
        str | None, typer.Option(help="Space of the volume where voxels lie on a surface and in a volume.")
    ] = None,
    resolution: Label = None,
    density: Label = None,
    desc: Label = None,
    source: Annotated[list[str] | None, typer.Option(help="URL or DOI of a source data set.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the derivative.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace maps that exist.")] = False,
) -> None:
    """Write the maps of a finished run as a BIDS derivative (NIfTI or GIFTI, each with a sidecar), or for pycortex."""
    options = {name: value for name, value in locals().items() if name not in ("source", "vertices")}
    from neuroenc.study import export as work

    work(**options, n_vertices=vertices, source_datasets=source or (), say=typer.echo)
