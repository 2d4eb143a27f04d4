"""``neuroenc group``: finished runs of several subjects as one map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroenc.cli._errors import clean_errors


@clean_errors
def group(
    runs: Annotated[list[Path], typer.Argument(help="Folders of neuroenc run or caption, at least two subjects.")],
    out: Annotated[Path, typer.Option(help="Folder of the page, its maps and tables.")] = Path("neuroenc-group"),
    score: Annotated[str, typer.Option(help="Score that is mapped.")] = "r",
    chance: Annotated[float, typer.Option(help="Score without an effect.")] = 0.0,
    alternative: Annotated[str, typer.Option(help="greater or two-sided.")] = "greater",
    min_subjects: Annotated[
        int | None, typer.Option(help="Vertices that fewer subjects have are left out; default all subjects.", min=2)
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Map to compare the mean with: a score of the runs, thickness, curvature, area, or GIFTI files (twice "
            "for two hemispheres)."
        ),
    ] = None,
    null: Annotated[str, typer.Option(help="Null maps of --against: spin or moran.")] = "spin",
    sphere: Annotated[
        list[Path] | None, typer.Option(help="Registered sphere of another mesh than fsaverage5: left, then right.")
    ] = None,
    permutations: Annotated[int, typer.Option(help="Sign flips, and null maps.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Of sign flips and null maps.", min=0, max=2**32 - 1)] = 0,
) -> None:
    """Maps of a group on one mesh: mean, t (family-wise, TFCE, FDR), prevalence, overlap; regions; a page."""
    from neuroenc.study import group_runs as work

    page = work(
        runs,
        out,
        score=score,
        chance=chance,
        alternative=alternative,
        min_subjects=min_subjects,
        against=against or (),
        null=null,
        sphere=sphere or (),
        permutations=permutations,
        seed=seed,
        say=typer.echo,
    )
    typer.echo(f"report: {page}")
