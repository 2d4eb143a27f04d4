"""``neuroenc predict``: responses of a saved encoder's voxels to pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroenc.cli._errors import clean_errors
from neuroenc.cli._study import Quiet


@clean_errors
def predict(
    images: Annotated[
        list[Path],
        typer.Argument(help="Pictures, folders of pictures, a table of captions (.csv), or features (.nc, .zarr)."),
    ],
    encoder: Annotated[str, typer.Option(help="A folder that run, demo or save wrote, or a shipped encoder.")],
    out: Annotated[Path | None, typer.Option(help="Predicted responses: .nc, or .csv with one row a picture.")] = None,
    rois: Annotated[bool, typer.Option("--rois", help="Write means of regions in place of voxels.")] = False,
    device: Annotated[str, typer.Option(help="Of the backbone: auto, cpu, cuda, mps.")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Pictures at a time; numbers do not depend on it.", min=1)] = 64,
    quiet: Quiet = False,
) -> None:
    """Predict how a saved encoder's voxels respond to pictures; what the numbers mean, how far to trust them."""
    from neuroenc import study

    options = {"rois": rois, "device": device, "batch_size": batch_size}
    study.predict(images, encoder, out, progress=not quiet, say=typer.echo, **options)  # type: ignore[arg-type]
