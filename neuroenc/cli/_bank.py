"""``neuroenc bank``: banks of image embeddings that captions are projected onto."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from neuroenc.cli._errors import clean_errors

app = typer.Typer(no_args_is_help=True, help="Banks of image embeddings: build one, look at one.")


@app.command()
@clean_errors
def build(
    source: Annotated[Path, typer.Argument(help="Folder of images, or manifest (.json, .csv) with their licences.")],
    out: Annotated[Path, typer.Option(help="Folder of the bank; a build that was stopped there goes on.")],
    model: Annotated[str, typer.Option(help="world, an open_clip architecture, timm:NAME, local-dir:PATH.")] = "world",
    pretrained: Annotated[str | None, typer.Option(help="open_clip tag or checkpoint file.")] = None,
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    shard_rows: Annotated[int, typer.Option(help="Images of a block.")] = 4096,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    near_duplicates: Annotated[
        float | None, typer.Option(help="Leave out images whose cosine with an earlier one is above this, e.g. 0.98.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Embed images once, without duplicates, each with its file, licence and source."""
    options = {name: value for name, value in locals().items() if name != "quiet"}
    from neuroenc.retrieval import build_bank

    build_bank(**options, progress=not quiet, say=typer.echo)


@app.command()
@clean_errors
def info(
    bank: Annotated[Path, typer.Argument(help="Folder of a bank.")],
    verify: Annotated[bool, typer.Option("--verify", help="Hash every shard anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="bank.json, without the list of shards.")] = False,
) -> None:
    """What a bank holds: images, model, licences, and what was left out."""
    from neuroenc.retrieval import load_bank

    found = load_bank(bank)
    if verify:
        found.verify()
    known = {k: v for k, v in found.info.items() if k != "shards"}
    if as_json:
        typer.echo(json.dumps(known, indent=2))
        return
    counts = known["counts"]
    lines = {
        "images": f"{known['n']} of {counts['images']}",
        "left out": f"{counts['duplicates']} duplicates, {counts['near_duplicates']} near duplicates, "
        f"{counts['unreadable']} unreadable",
        "embeddings": f"{known['width']} features, {known['dtype']}, {len(found.info['shards'])} shards",
        "model": f"{known['model']}, weights {known['weights'] or 'its own'} (sha256 {known['weights_hash'][:12]})",
        "licences": ", ".join(f"{name}: {n}" for name, n in known["licences"].items()),
    }
    typer.echo(str(bank))
    for key, text in lines.items():
        typer.echo(f"  {key:<11} {text}")
    gone = found.left_out()
    for row in gone[gone["reason"].str.startswith("unreadable")].head(10).itertuples():
        typer.echo(f"  {row.file}: {row.reason}")
    if verify:
        typer.echo("  every shard is what bank.json promises")
