"""Conversion of released BraInCoRL checkpoints, both ways."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroenc._core.checkpoints import read_checkpoint
from neuroenc._core.errors import ConfigError, DataError, nearest_names
from neuroenc.encoders.incontext._config import InContextConfig
from neuroenc.encoders.incontext._model import InContextModel

# Of one block: published name, name here.
_BLOCK = {
    "layer_norm_1": "norm1",
    "attn.in_proj_": "attention.in_proj.",
    "attn.out_proj": "attention.out_proj",
    "layer_norm_2": "norm2",
    "ffn.linear1": "feed_forward.linear1",
    "ffn.linear2": "feed_forward.linear2",
}
# Of a residual block: places in its Sequential.
_RESIDUAL = {"norm1": "block.0", "linear1": "block.3", "norm2": "block.4", "linear2": "block.7", "bypass": "bypass"}
_ROOMS = {"early_layers": "early", "weight_pred": "head"}
_NESTED = ("state_dict", "model_state_dict", "model")
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_forward_module|module)\.")
_BYPASS = re.compile(r"bypass|skip|short|resid|proj", re.IGNORECASE)


def load_braincorl(path: str | os.PathLike[str], *, heads: int = 10) -> InContextModel:
    """Load a released BraInCoRL checkpoint.

    Parameters
    ----------
    path : path
        A state dict (``.pth``, ``.pt``), a Lightning checkpoint (``.ckpt``: a state dict in ``"state_dict"``, names
        with or without a prefix such as ``model.``), or ``.safetensors``. No code in the file is run: a file that
        holds anything but tensors, plain containers and paths of files is refused.
    heads : int
        Of attention. The file does not tell; all released presets have 10.

    Returns
    -------
    InContextModel
        Of the published form, in float32 and evaluation mode. Width of the embedding, depth, width, registers and
        width of the feed-forward layers come from the shapes.

    Raises
    ------
    DataError
        Not a checkpoint, names or shapes of another architecture, objects other than tensors, values not finite.
    ConfigError
        ``heads`` does not divide the width.

    Notes
    -----
    Names and shapes follow the released source. The released files themselves were not at hand, so three things are
    unchecked against them: that they hold nothing beside what is read here, that their encoder of images is the one
    the caller has (OpenAI's CLIP is said to be ViT-B/32; any of 512 dimensions would load), and published scores.
    Inside residual blocks layers are found by shape, then by name and order, so that other names work.

    References
    ----------
    Yu et al. (2025), BraInCoRL, NeurIPS, arXiv:2505.15813.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from neuroenc.encoders.incontext import load_braincorl, make_model
    >>> from neuroenc.encoders.incontext._official import published_state_dict
    >>> model = make_model("clip-3", n_features=16, dim=20, hidden=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(published_state_dict(model), folder + "/CLIP_trained_on_s125.pth")
    ...     load_braincorl(folder + "/CLIP_trained_on_s125.pth")
    InContextModel(published, 16 features, 3 x 20, 0.0 M parameters)
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected a checkpoint file. Next step: load_model reads folders.")
    content = read_checkpoint(path, "BraInCoRL checkpoint", _paths_allowed())
    found = _without_prefix(_state_dict(content, path), path)
    config = _config(found, heads, path)
    tensors: dict[str, Tensor] = {"stack.registers": found.pop("cls_token")}
    for room, ours in _ROOMS.items():
        part = {name: found.pop(name) for name in list(found) if name.startswith(room + ".")}
        sizes = (config.n_features + 1, config.dim) if ours == "early" else (config.dim, config.n_features + 1)
        tensors |= {f"{ours}.{k}": v for k, v in _residual(part, room, *sizes, 2 * config.dim, path).items()}
    tensors |= _blocks(found, config, path)
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise DataError(f"{path} holds values that are not finite ({name}). Next step: download it again.")
    model = InContextModel(config)
    model.load_state_dict({name: value.float() for name, value in tensors.items()})
    return model.eval()


def published_state_dict(model: InContextModel) -> dict[str, Tensor]:
    """State dict of a published-form model under the released parameter names.

    Examples
    --------
    >>> from neuroenc.encoders.incontext import make_model
    >>> list(published_state_dict(make_model("clip-3", n_features=16, dim=20, hidden=32)))[:2]
    ['cls_token', 'early_layers.0.block.0.weight']
    """
    if model.head is None:
        raise ConfigError("an anchored model has no published layout. Next step: make_model(..., form='published').")
    own = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    out = {"cls_token": own["stack.registers"]}
    for room, ours in _ROOMS.items():
        for layer, place in _RESIDUAL.items():
            for kind in ("weight", "bias"):
                out[f"{room}.0.{place}.{kind}"] = own[f"{ours}.{layer}.{kind}"]
        if ours == "early":
            for theirs, name in _block_names(model.config.depth).items():
                out[theirs] = own[name]
    return {name: value.contiguous().clone() for name, value in out.items()}


def _paths_allowed() -> Any:
    """Lightning's settings of the released training hold the path of a folder; a pure path does nothing."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        return None
    kinds = {"PosixPath": pathlib.PurePosixPath, "WindowsPath": pathlib.PureWindowsPath}
    kinds |= {"PurePosixPath": pathlib.PurePosixPath, "PureWindowsPath": pathlib.PureWindowsPath}
    rooms = ("pathlib", "pathlib._local")
    return torch.serialization.safe_globals([(v, f"{room}.{k}") for k, v in kinds.items() for room in rooms])


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    tensors = isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())
    if not tensors or not content:
        what = f"a {type(content).__name__}" + (f" of {list(content)[:6]}" if isinstance(content, Mapping) else "")
        raise DataError(f"{path} holds {what}; expected a state dict, or one in 'state_dict'.")
    return {_WRAPPERS.sub("", str(name)): value for name, value in content.items()}


def _without_prefix(found: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Names without what stands before ``cls_token``."""
    starts = [name.removesuffix("cls_token") for name in found if name.split(".")[-1] == "cls_token"]
    if len(starts) != 1:
        close = nearest_names("cls_token", found)
        raise DataError(
            f"{path} is not a BraInCoRL checkpoint: {len(starts)} tensors named cls_token, expected 1"
            + (f" (nearest: {', '.join(close)})" if close else "")
            + f". Found {len(found)} tensors such as {', '.join(list(found)[:4])}."
        )
    return {name.removeprefix(starts[0]): value for name, value in found.items()}


def _config(found: dict[str, Tensor], heads: int, path: Path) -> InContextConfig:
    token = found["cls_token"]
    if token.ndim == 2:
        token = found["cls_token"] = token[None]
    if token.ndim != 3 or len(token) != 1:
        raise DataError(f"{path}: cls_token has shape {tuple(token.shape)}; expected (1, registers, width).")
    dim = token.shape[2]
    numbers = [int(m.group(1)) for name in found if (m := re.match(r"transformer\.(\d+)\.", name))]
    depth = max(numbers, default=-1) + 1
    inner = found.get("transformer.0.ffn.linear2.weight")
    wide = [v.shape for k, v in found.items() if k.startswith("early_layers.") and v.ndim == 2 and len(v) == 2 * dim]
    if depth == 0 or inner is None or not wide:
        lacks = "early_layers.*" if depth and inner is not None else "transformer.0.ffn.linear2.weight"
        close = nearest_names(lacks, found)
        hint = f" (nearest: {', '.join(close)})" if close else ""
        raise DataError(
            f"{path} is not a BraInCoRL checkpoint of width {dim} (cls_token): no {lacks} of that width{hint}."
        )
    if heads < 1 or dim % heads:
        raise ConfigError(f"heads={heads} does not divide the width {dim} of {path}. Released: heads=10.")
    return InContextConfig(
        wide[0][1] - 1, dim, depth, heads=heads, hidden=inner.shape[-1], registers=token.shape[1], form="published"
    )


def _block_names(depth: int) -> dict[str, str]:
    """Published to own names of all tensors of the transformer."""
    out = {}
    for i in range(depth):
        for theirs, ours in _BLOCK.items():
            dot = "" if theirs.endswith("_") else "."
            for kind in ("weight", "bias"):
                out[f"transformer.{i}.{theirs}{dot}{kind}"] = f"stack.blocks.{i}.{ours.rstrip('.')}.{kind}"
    return out


def _blocks(found: dict[str, Tensor], config: InContextConfig, path: Path) -> dict[str, Tensor]:
    names = _block_names(config.depth)
    missing, unexpected = [k for k in names if k not in found], [k for k in found if k not in names]
    if missing or unexpected:
        close = {name: near for name in missing[:4] if (near := nearest_names(name, unexpected, n=1))}
        raise DataError(
            f"{path} is not the published architecture ({config.depth} blocks of width {config.dim}). "
            f"Missing: {_some(missing)}; unexpected: {_some(unexpected)}."
            + "".join(f" {near[0]} looks like {name}." for name, near in close.items())
        )
    d, h = config.dim, config.hidden
    shapes = {
        "attn.in_proj_weight": (3 * d, d),
        "attn.in_proj_bias": (3 * d,),
        "attn.out_proj.weight": (d, d),
        "ffn.linear1.weight": (2 * h, d),
        "ffn.linear1.bias": (2 * h,),
        "ffn.linear2.weight": (d, h),
    }
    for name in names:
        wanted = shapes.get(name.split(".", 2)[2], (d,))
        if tuple(found[name].shape) != wanted:
            raise DataError(f"{path}: {name} has shape {tuple(found[name].shape)}; expected {wanted}.")
    return {ours: found[theirs] for theirs, ours in names.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)} in all)" if len(names) > 4 else "") if names else "none"


def _residual(part: dict[str, Tensor], room: str, n_in: int, n_out: int, hidden: int, path: Path) -> dict[str, Tensor]:
    """Layers of one residual block, whatever their names: by shape, then by what names and order say."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, value in part.items():
        module, _, kind = name.rpartition(".")
        modules.setdefault(module, {})[kind] = value
    if path.suffix == ".safetensors":  # Such files have no order of their own.
        modules = dict(sorted(modules.items(), key=lambda item: _natural(item[0])))
    odd = [m for m, kinds in modules.items() if set(kinds) != {"weight", "bias"}]
    linear = [m for m, kinds in modules.items() if m not in odd and kinds["weight"].ndim == 2]
    norms = [m for m, kinds in modules.items() if m not in odd and kinds["weight"].ndim == 1]
    identity = n_in == n_out and len(linear) == 2
    if odd or len(norms) != 2 or len(linear) + identity != 3 or len(linear) + 2 != len(modules):
        raise DataError(
            f"{path}: {room} has {len(norms)} norms and {len(linear)} linear layers; the published form has one "
            f"residual block there, 2 norms and 3 linear layers. Found: {_some(list(part))}."
        )
    homes = {m.rpartition(".")[0] for m in norms}
    roles = (("linear1", (hidden, n_in)), ("linear2", (n_out, hidden)), ("bypass", (n_out, n_in)))
    best: tuple[tuple[Any, ...], dict[str, str]] | None = None
    for order in permutations(linear):
        fits = all(tuple(modules[m]["weight"].shape) == shape for m, (_, shape) in zip(order, roles))
        if fits:
            aside = order[2] if len(order) == 3 else ""
            score = (
                bool(_BYPASS.search(aside.removeprefix(room))),
                aside.rpartition(".")[0] not in homes,
                linear.index(order[0]) < linear.index(order[1]),
            )
            if best is None or score > best[0]:
                best = (score, {role: m for m, (role, _) in zip(order, roles)})
    sizes = [len(modules[m]["weight"]) for m in norms]
    if best is None or sorted(sizes) != sorted((n_in, hidden)):
        shapes = {m: tuple(kinds["weight"].shape) for m, kinds in modules.items()}
        wanted = {"norms": (n_in, hidden), **dict(roles)}
        raise DataError(f"{path}: {room} has weights of shapes {shapes}; expected {wanted}.")
    first = 0 if sizes[0] == n_in else 1
    chosen = {"norm1": norms[first], "norm2": norms[1 - first], **best[1]}
    out = {f"{role}.{kind}": modules[m][kind] for role, m in chosen.items() for kind in ("weight", "bias")}
    if identity:
        out |= {"bypass.weight": torch.eye(n_in), "bypass.bias": torch.zeros(n_in)}
    for name, value in out.items():
        if name.endswith("bias") and len(value) != len(out[name.replace("bias", "weight")]):
            raise DataError(f"{path}: a bias of {room} has {len(value)} entries; its weight has others.")
    return out


def _natural(name: str) -> list[Any]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
