"""Files of the Hugging Face Hub: those of this machine first, and one error where there is no network."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from neuroenc._core.errors import DataError

T = TypeVar("T")
_MUTING = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Without what other packages log and warn of on the way: what matters is said in one error."""
    # One thread at a time: the state that is put back is that of the whole process.
    with _MUTING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


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
    """
    from huggingface_hub import constants, get_session

    try:
        with quiet(), _offline():
            return fetch()
    except Exception as error:
        if constants.HF_HUB_OFFLINE:
            raise DataError(f"{what} is not on this machine, and HF_HUB_OFFLINE is set. Next step: {step}.") from error
    try:
        # One request, through whatever proxy is set; the hub's own client would try six times.
        with quiet():
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
