"""``neuroenc contrast``: captions of two finished studies against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroenc.cli._errors import clean_errors


@clean_errors
def contrast(
    a: Annotated[Path, typer.Argument(help="Folder of neuroenc caption.")],
    b: Annotated[Path, typer.Argument(help="Another; or the same, with --roi and --roi-b.")],
    out: Annotated[Path, typer.Option(help="Folder of the page and its tables.")] = Path("neuroenc-contrast"),
    roi: Annotated[str | None, typer.Option(help="Region of both; default all captioned voxels.")] = None,
    roi_b: Annotated[str | None, typer.Option(help="Region of the second, where it is another.")] = None,
    same_subjects: Annotated[
        bool, typer.Option("--same-subjects", help="Subjects of the same name are the same people.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the permutations.", min=0, max=2**32 - 1)] = 0,
) -> None:
    """Contrast the captions of two data sets, groups of subjects or regions; intervals over subjects; a page."""
    from neuroenc.study import contrast_studies as work

    page = work(a, b, out, roi=roi, roi_b=roi_b, same_subjects=same_subjects, seed=seed, say=typer.echo)
    typer.echo(f"report: {page}")
