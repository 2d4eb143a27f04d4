"""Help for other packages: torchvision beside a CPU build of torch, and weights of the Hugging Face Hub.

torchvision's Linux wheels on PyPI link against the CUDA libraries. Beside a CPU-only torch their compiled
operators cannot load; torchvision goes on without them and then fails on import, because it registers a
shape function for an operator that does not exist (pytorch/vision #9077, #9085). open_clip, timm and
transformers all import torchvision. Declaring the two missing operators beforehand is enough: they stay
unimplemented (calling them fails), and neuroenc never calls them.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from neuroenc._core.errors import DataError

# The operators whose shape functions torchvision registers without asking whether they exist.
_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_CUDA_LIBRARIES = ("torch_cuda", "c10_cuda", "cudart", "cublas", "cudnn", "nvjpeg", "nvcuvid")
_state: dict[str, Any] = {}


def _lacks_cuda(folder: Path) -> bool:
    """Whether torchvision's operators cannot load because of an absent CUDA library."""
    import torch

    for library in sorted([*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]):
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            # Newer torch wraps the loader's own message.
            said = f"{error} {error.__cause__} {error.__context__}"
            if any(f"lib{name}" in said for name in _CUDA_LIBRARIES):
                return True
    return False


def prepare() -> bool:
    """Make torchvision importable beside a CPU build of torch: declare its missing operators.

    Called by neuroenc before every import of open_clip, timm, transformers or sentence_transformers. It does
    nothing on a CUDA or ROCm build of torch (a fault there must be seen), without torchvision, after
    torchvision has been imported, and where the compiled operators load.

    Returns
    -------
    bool
        Whether the operators were declared (now or by an earlier call).

    Examples
    --------
    >>> from neuroenc.embedding import prepare
    >>> first = prepare()
    >>> import torchvision
    >>> prepare() == first
    True
    """
    if "declared" in _state:
        return bool(_state["declared"])
    _state["declared"] = False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations or "torchvision" in sys.modules:
        return False
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        return False
    if not _lacks_cuda(Path(next(iter(spec.submodule_search_locations)))):
        return False
    # The library object owns the declarations: they vanish with it.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}{_SCHEMA}")
    _state.update(library=library, declared=True)
    return True


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

    Raises
    ------
    DataError
        It is not on this machine, and the hub is not reached or has no such thing.
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
