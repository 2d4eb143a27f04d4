"""Weights of the Hugging Face Hub: local copies first, else one attempt to download."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from neuroenc._core.errors import DataError

T = TypeVar("T")
_LOGGERS = ("huggingface_hub", "httpx", "httpcore", "urllib3", "root")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines and progress of each retry: what matters is said in one error."""
    loggers = [logging.getLogger(None if name == "root" else name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _offline() -> Iterator[None]:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def from_hub(fetch: Callable[[], T], what: str, step: str) -> T:
    """What ``fetch`` gives, looked for on this machine first.

    Parameters
    ----------
    fetch : callable
        Downloads with ``huggingface_hub``, or finds what was downloaded before.
    what : str
        What it is, for the error.
    step : str
        What to do without a network.

    Raises
    ------
    DataError
        It is not on this machine, and the hub is not reached or has no such thing.
    """
    from huggingface_hub import constants, get_session

    try:
        with _quiet(), _offline():
            return fetch()
    except Exception as error:
        if constants.HF_HUB_OFFLINE:
            raise DataError(f"{what} is not on this machine, and HF_HUB_OFFLINE is set. Next step: {step}.") from error
    try:
        # One request, through whatever proxy is set; the hub's own client would try six times.
        with _quiet():
            get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:
        raise DataError(
            f"{what} is not on this machine, and {constants.ENDPOINT} is not reached ({type(error).__name__}). "
            f"Next step: {step}."
        ) from error
    try:
        return fetch()
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{what} could not be had from {constants.ENDPOINT}: {said}. Next step: {step}.") from error
