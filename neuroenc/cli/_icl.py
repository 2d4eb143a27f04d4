"""``neuroenc icl``: in-context encoders for new subjects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from neuroenc._core.errors import ConfigError
from neuroenc.cli._errors import clean_errors
from neuroenc.study.read import example_or_file, examples_help

app = typer.Typer(
    no_args_is_help=True,
    help="In-context encoders: train on some subjects, predict a new one from a few of its trials.",
)

Config = Annotated[Path | None, typer.Argument(help="A TOML config.")]
Example = Annotated[str | None, typer.Option(help=examples_help("icl"))]
Out = Annotated[Path | None, typer.Option(help="The study's folder, for all stages; default neuroenc-icl-NAME.")]
Mirror = Annotated[Path | None, typer.Option(help="Folder with data sets, tried before downloads.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="table.key=value, replaces a setting.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def _work(
    name: str,
    config: Path | None,
    example: str | None,
    out: Path | None,
    mirror: Path | None,
    changes: list[str] | None,
    quiet: bool,
) -> None:
    settings, called = example_or_file(config, example, changes, "icl")
    folder = out or Path(f"neuroenc-icl-{called}")
    options: Any = {"mirror": mirror, "progress": not quiet, "say": typer.echo}
    from neuroenc import study

    if name == "evaluate":
        study.incontext_evaluate(settings, folder, **options)
    else:
        study.incontext_train(settings, folder, name, **options)


@app.command()
@clean_errors
def pretrain(
    config: Config = None,
    example: Example = None,
    out: Out = None,
    mirror: Mirror = None,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """First stage: a new model, on synthetic voxels drawn from what the training subjects' voxels are like."""
    _work("pretrain", config, example, out, mirror, set_, quiet)


@app.command()
@clean_errors
def extend(
    config: Config = None,
    example: Example = None,
    out: Out = None,
    mirror: Mirror = None,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """Second stage: the pretrained model learns to read supports of any size."""
    _work("extend", config, example, out, mirror, set_, quiet)


@app.command()
@clean_errors
def finetune(
    config: Config = None,
    example: Example = None,
    out: Out = None,
    mirror: Mirror = None,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """Third stage: responses of training subjects among the synthetic voxels."""
    _work("finetune", config, example, out, mirror, set_, quiet)


@app.command()
@clean_errors
def evaluate(
    config: Config = None,
    example: Example = None,
    out: Out = None,
    mirror: Mirror = None,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """Accuracy on new subjects over the number of support trials, beside ridge and other baselines; a report."""
    _work("evaluate", config, example, out, mirror, set_, quiet)


@app.command()
@clean_errors
def predict(
    config: Config = None,
    example: Example = None,
    features: Annotated[Path | None, typer.Option(help="Features of the support, .nc or .zarr.")] = None,
    responses: Annotated[Path | None, typer.Option(help="Responses of the support, .nc or .zarr.")] = None,
    query: Annotated[Path | None, typer.Option(help="Features of the stimuli to predict.")] = None,
    model: Annotated[str | None, typer.Option(help="world, or a folder that a stage wrote.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for predictions.nc, encoder/ and summary.json.")] = None,
    mirror: Mirror = None,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """Predict a new subject's responses from a few of its trials: give three files, or a config, or an example."""
    from neuroenc import study
    from neuroenc.study.config.incontext import IncontextConfig

    given = {"features": features, "responses": responses, "query": query}
    found = {k: str(v.resolve()) for k, v in given.items() if v is not None}
    if model is not None:
        found["model"] = str(Path(model).resolve()) if Path(model).is_dir() else model
    called = "new"
    if config is None and example is None and {"features", "responses", "query"} <= set(found):
        settings = study.StudyConfig()
    elif config is None and example is None:
        legal = ", ".join(study.list_examples("icl"))
        raise ConfigError(
            f"give a CONFIG.toml or --example NAME (one of {legal}), or --features, --responses and --query."
        )
    else:
        settings, called = example_or_file(config, example, set_, "icl")
    tables = settings.incontext or IncontextConfig()
    tables = tables.model_copy(update={"predict": tables.predict.model_copy(update=found)})
    settings = settings.model_copy(update={"incontext": tables})
    folder = out or Path(f"neuroenc-icl-predict-{called}")
    study.incontext_predict(settings, folder, mirror=mirror, progress=not quiet, say=typer.echo)
