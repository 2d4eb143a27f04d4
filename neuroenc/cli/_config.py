"""``neuroenc config``: settings as they take effect, and their schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from neuroenc.cli._errors import clean_errors

app = typer.Typer(no_args_is_help=True, help="Configs: show, schema for editors.")


@app.command()
@clean_errors
def show(
    config: Annotated[Path | None, typer.Argument(help="A TOML config.")] = None,
    example: Annotated[str | None, typer.Option(help="A shipped config instead.")] = None,
    command: Annotated[
        Literal["run", "caption", "compare", "icl", "plan"] | None,
        typer.Option("--for", help="The command that would read it."),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="table.key=value, replaces a setting.")] = None,
) -> None:
    """Settings as they take effect, defaults and absolute paths included, as TOML."""
    from neuroenc.study.read import dump_config, example_or_file

    typer.echo(dump_config(example_or_file(config, example, set_, command or ("" if config else "run"))[0]), nl=False)


@app.command()
@clean_errors
def schema(out: Annotated[Path | None, typer.Option(help="A file; default: printed.")] = None) -> None:
    """JSON schema of a config, for editors that complete and check TOML."""
    from neuroenc.study.config import config_schema

    text = json.dumps(config_schema(), indent=2)
    if out is None:
        typer.echo(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
        typer.echo(f'{out}: put "#:schema {out}" in the first line of a config.')
