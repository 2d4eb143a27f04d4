"""``neuroenc serve``: what would this cortex say to a picture?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroenc.cli._errors import clean_errors


@clean_errors
def serve(
    encoder: Annotated[
        list[str] | None,
        typer.Option(help="A folder that run, demo or save wrote, or a name; may be given again. Default all shipped."),
    ] = None,
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 0,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures to try and to compare with; default simulated scenes."),
    ] = None,
    device: Annotated[str, typer.Option(help="Of the backbone: auto, cpu, cuda, mps.")] = "auto",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address alone.")] = False,
) -> None:
    """Open a page on this machine that shows what encoders predict for pictures that you drop on it."""
    from neuroenc.study import serve as work

    work(encoder or (), port=port, pictures=pictures, device=device, browser=not no_browser, say=typer.echo)
