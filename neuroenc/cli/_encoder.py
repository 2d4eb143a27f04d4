"""``neuroenc encoder``: saved encoders, those of this machine and those of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroenc.cli._cache import size_text
from neuroenc.cli._errors import clean_errors
from neuroenc.cli._study import Quiet

app = typer.Typer(no_args_is_help=True, help="Saved encoders: list, show, push, pull.")


@app.command("list")
@clean_errors
def list_(
    source: Annotated[str | None, typer.Argument(help="A library: a folder or an http(s):// address.")] = None,
) -> None:
    """Encoders of this machine (shipped and pulled), or of a library."""
    from neuroenc.encoders import encoder_table

    for row in encoder_table(source).to_dict("records"):
        about = f"{row['n_voxels']} voxels, median held-out r {row['median_r']}, {size_text(row['bytes'])}"
        typer.echo(f"{row['name']:20} {about:55} {row['title']}".rstrip())


@app.command()
@clean_errors
def show(
    encoder: Annotated[str, typer.Argument(help="A folder, or a name of `neuroenc encoder list`.")],
) -> None:
    """The card of an encoder: what its values mean, what it was fitted on, how good it is, and what for it is not."""
    from neuroenc._core.errors import DataError
    from neuroenc.encoders import encoder_folder

    page = encoder_folder(encoder) / "README.md"
    if not page.is_file():
        raise DataError(
            f"{page} does not exist. Next step: load_encoder({encoder!r}).card holds the same; save it again."
        )
    typer.echo(page.read_text(encoding="utf-8"), nl=False)


@app.command()
@clean_errors
def push(
    folder: Annotated[str, typer.Argument(help="A saved encoder.")],
    dest: Annotated[str, typer.Argument(help="A library (a folder, made where needed), or hf://USER/NAME.")],
    name: Annotated[str | None, typer.Option(help="In the library; default: the folder's name.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Of a repository of the hub that is made.")] = False,
) -> None:
    """Add an encoder to a library, with checksums; a library can be copied onto any web server."""
    from neuroenc.encoders import push_encoder

    where = push_encoder(folder, dest, name, private=private)
    typer.echo(f"pushed: {where}   Next step: neuroenc encoder pull {where}")


@app.command()
@clean_errors
def pull(
    source: Annotated[str, typer.Argument(help="LIBRARY/NAME, a folder or http(s):// address; or hf://USER/NAME.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the encoder; default: found by its name.")] = None,
    max_size: Annotated[str, typer.Option(help="More is refused.")] = "4GB",
    quiet: Quiet = False,
) -> None:
    """Fetch an encoder of a library; every file is checked before anything of it is kept."""
    from neuroenc.encoders import pull_encoder

    where = pull_encoder(source, out, max_size=max_size, progress=not quiet)
    typer.echo(f"pulled: {where}   Next step: neuroenc encoder show {where if out else where.name}")
