"""Commands that work on a study: ``neuroenc run``, ``compare``, ``caption`` and ``icl``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from neuroenc._core.errors import ConfigError
from neuroenc.cli._errors import clean_errors
from neuroenc.study.read import example_or_file, examples_help, list_examples

icl = typer.Typer(
    no_args_is_help=True,
    help="In-context encoders: train on some subjects, predict a new one from a few of its trials.",
)

Config = Annotated[Path | None, typer.Argument(help="A TOML config.")]
Out = Annotated[Path | None, typer.Option(help="Output folder; by default named after command and config.")]
Mirror = Annotated[Path | None, typer.Option(help="Folder with data sets, tried before downloads.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="table.key=value, replaces a setting.")]
Workers = Annotated[int | None, typer.Option(help="Processes; the numbers do not depend on it.", min=1)]
Client = Annotated[str | None, typer.Option(help="Dask cluster: tcp://HOST:PORT of its scheduler, or local:4.")]
Verify = Annotated[bool, typer.Option("--verify", help="Hash files anew that have not changed by size and times.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def _command(group: str, about: str, function: str, *arguments: str) -> Callable[..., None]:
    """A command that hands a config, a folder and the options of a study to a function of `neuroenc.study`."""

    def command(
        config: Config = None,
        example: str | None = None,
        out: Out = None,
        mirror: Mirror = None,
        set_: Settings = None,
        workers: Workers = None,
        client: Client = None,
        verify: Verify = False,
        quiet: Quiet = False,
    ) -> None:
        settings, name = example_or_file(config, example, set_, group)
        # Only now, so that a wrong setting is told before torch is loaded.
        from neuroenc import study

        work: Any = getattr(study, function)
        options: dict[str, Any] = {"mirror": mirror, "workers": workers, "client": client, "progress": not quiet}
        work(settings, out or Path(f"neuroenc-{group}-{name}"), *arguments, say=typer.echo, **options)

    command.__doc__ = about
    # Here, because annotations of the function are looked up among the module's own names.
    command.__annotations__["example"] = Annotated[str | None, typer.Option(help=examples_help(group))]
    return clean_errors(command)


run = _command("run", "Fit encoders to a data set or to your own arrays, score against noise ceilings, report.", "run")
compare = _command(
    "compare",
    "Compare feature spaces, cores and readouts on the same rows with the same budget; statistics and a report.",
    "compare",
)
caption = _command(
    "caption",
    "Caption voxels: weights projected onto natural images, decoded into language, checked; a report.",
    "caption",
)
for _name, _about in {
    "pretrain": "First stage: a new model, on synthetic voxels drawn from what the training subjects' voxels are like.",
    "extend": "Second stage: the pretrained model learns to read supports of any size.",
    "finetune": "Third stage: responses of training subjects among the synthetic voxels.",
}.items():
    icl.command(_name)(_command("icl", _about, "incontext_train", _name))
icl.command("evaluate")(
    _command(
        "icl",
        "Accuracy on new subjects over the number of support trials, beside ridge and other baselines; a report.",
        "incontext_evaluate",
    )
)
icl.command("inspect")(
    _command(
        "icl",
        "Heads that matter, circuits, attention sinks and leaks of in-context models on a new subject; a report.",
        "incontext_inspect",
    )
)


@icl.command()
@clean_errors
def predict(
    config: Config = None,
    example: Annotated[str | None, typer.Option(help=examples_help("icl"))] = None,
    features: Annotated[Path | None, typer.Option(help="Features of the support, .nc or .zarr.")] = None,
    responses: Annotated[Path | None, typer.Option(help="Responses of the support, .nc or .zarr.")] = None,
    query: Annotated[Path | None, typer.Option(help="Features of the stimuli to predict.")] = None,
    model: Annotated[str | None, typer.Option(help="world, or a folder that a stage wrote.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for predictions.nc, encoder/ and summary.json.")] = None,
    mirror: Mirror = None,
    set_: Settings = None,
    verify: Verify = False,
    quiet: Quiet = False,
) -> None:
    """Predict a new subject's responses from a few of its trials: give three files, or a config, or an example."""
    from neuroenc import study
    from neuroenc.study.config import IncontextConfig

    files = {"features": features, "responses": responses, "query": query}
    found = {k: str(v.resolve()) for k, v in files.items() if v is not None}
    settings, name = study.StudyConfig(), "new"
    if config is not None or example is not None:
        settings, name = example_or_file(config, example, set_, "icl")
    elif len(found) < len(files):
        raise ConfigError(
            f"give a CONFIG.toml or --example NAME (one of {', '.join(list_examples('icl'))}), or --features, "
            "--responses and --query."
        )
    if model is not None:
        found["model"] = str(Path(model).resolve()) if Path(model).is_dir() else model
    tables = settings.incontext or IncontextConfig()
    tables = tables.model_copy(update={"predict": tables.predict.model_copy(update=found)})
    settings = settings.model_copy(update={"incontext": tables})
    folder = out or Path(f"neuroenc-icl-predict-{name}")
    study.incontext_predict(settings, folder, mirror=mirror, progress=not quiet, say=typer.echo)
