"""``neuroenc plan``: which pictures to show to a new subject."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from neuroenc._core.errors import ConfigError
from neuroenc.cli._errors import clean_errors
from neuroenc.cli._study import Mirror, Out, Quiet, Settings, Verify
from neuroenc.study.read import example_or_file, examples_help, list_examples, parse_config


@clean_errors
def plan(
    pool: Annotated[
        str | None,
        typer.Argument(help='Features (.nc or .zarr), a folder of pictures, "world", or a CONFIG.toml with [plan].'),
    ] = None,
    example: Annotated[str | None, typer.Option(help=examples_help("plan"))] = None,
    k: Annotated[int | None, typer.Option("-k", "--number", help="Pictures to choose; 50 by default.", min=1)] = None,
    prior: Annotated[
        str | None,
        typer.Option(help="Other subjects: an in-context model (world, or a folder), a saved prior or encoder; none."),
    ] = None,
    seen: Annotated[Path | None, typer.Option(help="Responses so far: only the next pictures are chosen.")] = None,
    rois: Annotated[
        list[str] | None, typer.Option("--rois", help="Region whose voxels of --seen count; may be given again.")
    ] = None,
    select: Annotated[str | None, typer.Option(help="random, nearest, coverage, d-optimal, v-optimal, prior.")] = None,
    target: Annotated[Path | None, typer.Option(help="Features of the pictures that are to be predicted.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A picture, or a text file of them; may be given again.")
    ] = None,
    balance: Annotated[str | None, typer.Option(help="Stimulus coordinate whose values are chosen equally.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Presentations of each picture.", min=1)] = None,
    trials: Annotated[
        int | None, typer.Option(help="Presentations of the session: how many repeats, how many pictures?", min=2)
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder with the pictures of a file of features.")] = None,
    backbone: Annotated[str | None, typer.Option(help="What embeds a folder of pictures.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", min=0, max=2**32 - 1)] = None,
    out: Out = None,
    mirror: Mirror = None,
    set_: Settings = None,
    verify: Verify = False,
    quiet: Quiet = False,
) -> None:
    """Plan a session: which pictures of a pool to show to a new subject, in which order, and what to expect of them."""
    if pool is None and example is None:
        legal = ", ".join(list_examples("plan"))
        raise ConfigError(f"give a POOL (features, a folder of pictures), a CONFIG.toml, or --example NAME ({legal}).")
    files = {"seen": seen, "target": target, "pictures": pictures}
    given: dict[str, Any] = {key: str(path) for key, path in files.items() if path is not None}
    named = {"k": k, "prior": prior, "select": select, "balance": balance, "repeats": repeats, "trials": trials}
    given |= {key: value for key, value in named.items() if value is not None}
    if rois:
        given["rois"] = rois
    lists = [name for name in exclude or [] if Path(name).is_file()]
    if len(lists) > 1:
        raise ConfigError(f"--exclude takes one file; found {len(lists)}: {', '.join(lists)}. Next step: join them.")
    if lists:
        given["exclude_file"] = lists[0]
    if set(exclude or []) - set(lists):
        given["exclude"] = [name for name in exclude or [] if name not in lists]
    plain: dict[str, Any] = {"plan": {"pool": "world", **given}}
    if backbone is not None:
        plain["features"] = {"model": backbone}
    if seed is not None:
        plain["seed"] = seed
    if example is None and pool is not None and not pool.endswith(".toml"):
        plain["plan"]["pool"], plain["title"] = pool, f"Pictures to show: {Path(pool).name}"
        settings, name = parse_config(plain, set_, "plan"), Path(pool).stem
    else:
        settings, name = example_or_file(Path(pool) if pool else None, example, set_, "plan")
        said = parse_config(plain, None, "plan")
        assert settings.plan is not None
        assert said.plan is not None
        # Checked together: what the file says may not go with what the command line says.
        whole = type(said.plan)(**settings.plan.model_dump() | {key: getattr(said.plan, key) for key in given})
        changes: dict[str, Any] = {key: getattr(said, key) for key in ("features", "seed") if key in plain}
        settings = settings.model_copy(update={"plan": whole, **changes})
    from neuroenc import study

    folder = out or Path(f"neuroenc-plan-{name}")
    study.plan(settings, folder, mirror=mirror, progress=not quiet, say=typer.echo)
