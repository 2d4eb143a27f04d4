"""``neuroenc cache``: what is cached, and how to clear it."""

from __future__ import annotations

from typing import Annotated

import typer

from neuroenc.cli._errors import clean_errors

app = typer.Typer(no_args_is_help=True, help="Cached features: list them, clear them.")


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


@app.command("list")
@clean_errors
def list_() -> None:
    """List cached features, the newest first."""
    from neuroenc.embedding import cache_dir, cache_list

    table = cache_list()
    typer.echo(f"{cache_dir() / 'features'}: {len(table)} entries, {_size(float(table['bytes'].sum()))}")
    for row in table.to_dict("records"):
        place = " ".join(str(row[k]) for k in ("backbone", "weights", "layer", "pooling") if row[k])
        broken = "interrupted" if row["path"].endswith(".part") else "damaged; it is made again when it is needed"
        state = "" if row["complete"] else f"  ({broken})"
        typer.echo(
            f"{row['key'][:12]}  {row['created']}  {row['n']:>7} {row['kind'] or '?'}  {_size(row['bytes']):>9}  "
            f"{place}{state}"
        )


@app.command()
@clean_errors
def clear(
    older_than: Annotated[
        str | None, typer.Option(help="Only what was not used for this long: 7 (days), 12h, 7d, 2w.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove cached features."""
    from neuroenc.embedding import cache_clear, cache_dir

    what = "all features" if older_than is None else f"features not used for {older_than}"
    if not yes:
        typer.confirm(f"Remove {what} from {cache_dir() / 'features'}?", abort=True)
    typer.echo(f"freed {_size(cache_clear(older_than))}")
