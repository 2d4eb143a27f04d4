"""Help for other packages: torchvision beside a CPU build of torch.

torchvision's Linux wheels on PyPI link against the CUDA libraries. Beside a CPU-only torch their compiled
operators cannot load; torchvision goes on without them and then fails on import, because it registers a
shape function for an operator that does not exist (pytorch/vision #9077, #9085). open_clip, timm and
transformers all import torchvision. Declaring the two missing operators beforehand is enough: they stay
unimplemented (calling them fails), and neuroenc never calls them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

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
