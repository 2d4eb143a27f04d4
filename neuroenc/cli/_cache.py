"""``neuroenc cache``: what is kept, and how to clear it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from neuroenc.cli._errors import clean_errors

app = typer.Typer(no_args_is_help=True, help="What is kept to be used again: list it, clear it.")


def size_text(n: float) -> str:
    """A number of bytes as text."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def _age(seconds: float) -> str:
    for unit, length in (("w", 604800), ("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


@app.command("list")
@clean_errors
def list_(
    out: Annotated[Path | None, typer.Argument(help="Output folder of a study, in place of the cache.")] = None,
) -> None:
    """List what the cache holds (features, responses, hashes of files) or a study keeps: kind, size, age, content."""
    from neuroenc.embedding import cache_dir, cache_list

    table = cache_list(out)
    typer.echo(f"{out or cache_dir()}: {len(table)} entries, {size_text(float(table['bytes'].sum()))}")
    for row in table.to_dict("records"):
        state = "" if row["complete"] else "  (not complete)"
        age = _age(time.time() - row["used"].timestamp())
        typer.echo(f"{row['kind']:24} {size_text(row['bytes']):>9}  used {age:>5} ago  {row['what']}{state}".rstrip())


@app.command()
@clean_errors
def clear(
    older_than: Annotated[
        str | None, typer.Option(help="Only what was not used for this long: 7 (days), 12h, 7d, 2w.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Only features and responses, the least recently used, down to this size: 20GB.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what the cache holds; data sets that were fetched and folders of studies stay."""
    from neuroenc.embedding import cache_clear, cache_dir

    if not yes:
        what = "everything" if older_than is None else f"what was not used for {older_than}"
        typer.confirm(f"Remove {what}{'' if size is None else f' beyond {size}'} from {cache_dir()}?", abort=True)
    typer.echo(f"freed {size_text(cache_clear(older_than, size))}")
