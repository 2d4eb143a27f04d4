"""``neuroenc space``: feature spaces trained from one's own captions."""

from __future__ import annotations

import json
import tomllib
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from neuroenc._core.errors import ConfigError
from neuroenc.cli._errors import clean_errors

app = typer.Typer(no_args_is_help=True, help="Feature spaces of your own captions: train one, look at one.")


@app.command()
@clean_errors
def train(
    kind: Annotated[str, typer.Argument(help="bow, ngrams, ppmi, sgns, ranked, grounded, nested or rendered.")],
    captions: Annotated[Path, typer.Option(help="CSV with the columns stimulus and caption.")],
    out: Annotated[Path, typer.Option(help="Folder of the space; a training that was stopped there goes on.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the stimuli's pictures, for an image tower.")] = None,
    image_model: Annotated[str, typer.Option(help="Of the image tower, or of rendered.")] = "efficientnet-lite0",
    held_out: Annotated[
        Path | None, typer.Option(help="CSV whose column stimulus names stimuli that take no part.")
    ] = None,
    mine: Annotated[
        int,
        typer.Option(help="Of ranked, grounded, nested: hard negatives a caption, found anew each epoch.", min=0),
    ] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting of the kind, such as dims=100.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train a space of texts, or of texts and images, that knows nothing but these captions."""
    settings = dict(_setting(text) for text in set_ or [])
    from neuroenc._core.tables import read_table
    from neuroenc.embedding import train_space

    left = () if held_out is None else read_table(held_out, ["stimulus"], what="held out")["stimulus"].tolist()
    miner = None
    if mine:
        from neuroenc.retrieval import AdaptiveMargin, OwnerQuery, mine_hard_negatives

        miner = partial(mine_hard_negatives, k=mine, filters=[OwnerQuery(), AdaptiveMargin()])
    options: dict[str, Any] = {
        "miner": miner,
        "images": images,
        "image_model": image_model,
        "held_out": left,
        "seed": seed,
    }
    space = train_space(kind, captions, out, **options, progress=not quiet, **settings)
    _tell(out, space.backbone.record)  # type: ignore[attr-defined]
    typer.echo(f'Next step: [features.words] kind = "text", model = "{out}"')


@app.command()
@clean_errors
def info(
    folder: Annotated[Path, typer.Argument(help="Folder of a space.")],
    as_json: Annotated[bool, typer.Option("--json", help="The record, without its vocabulary.")] = False,
) -> None:
    """How a space was trained, and on how many stimuli."""
    from neuroenc.embedding import TextEmbedder

    record = TextEmbedder(f"{folder.resolve()}").backbone.record  # type: ignore[attr-defined]
    if as_json:
        typer.echo(json.dumps({k: v for k, v in record.items() if k != "words"}, indent=2))
    else:
        _tell(folder, record)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r} must be written as name=value, such as dims=100.")
    try:
        return name.strip(), tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def _tell(folder: Path, record: dict[str, Any]) -> None:
    lines = {
        "kind": record["space"],
        "trained on": f"{record['captions']} captions of {record['stimuli']} stimuli",
        "vectors": f"{record['width']} features",
        "vocabulary": f"{len(record['words'])} words or characters" if record["words"] else "hashed",
        "pictures": record.get("image_model", "none"),
        "settings": ", ".join(f"{k} {v}" for k, v in record["settings"].items()),
    }
    if "base_model" in record:
        lines["vocabulary"] = f"that of {record['base_model']}"
    typer.echo(str(folder))
    for key, text in lines.items():
        typer.echo(f"  {key:<11} {text}")
