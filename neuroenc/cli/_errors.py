"""Errors about the user's input, as one message and exit code 2 instead of a traceback."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from neuroenc._util.errors import NeuroencError

__all__ = ["clean_errors"]

P = ParamSpec("P")
R = TypeVar("R")


def clean_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Decorator for commands: a NeuroencError is printed as ``error: ...`` on stderr, exit code 2.

    NEUROENC_TRACEBACK=1 shows the traceback instead.

    Examples
    --------
    >>> @clean_errors
    ... def command() -> None:
    ...     raise NeuroencError("3 voxels are NaN. Next step: drop them.")
    >>> import contextlib, io
    >>> try:
    ...     with contextlib.redirect_stderr(io.StringIO()) as shown:
    ...         command()
    ... except typer.Exit as stop:
    ...     print(stop.exit_code, shown.getvalue())
    2 error: 3 voxels are NaN. Next step: drop them.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except NeuroencError as error:
            if os.environ.get("NEUROENC_TRACEBACK", "0") not in ("", "0"):
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error

    return wrapped
