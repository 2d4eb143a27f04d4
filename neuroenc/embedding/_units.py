r"""Core units: the few units of a model's MLPs that carry the texts of a category, and the model with these alone.

Of each token, the core are the units whose activations are the largest share of the positive ones; of a category, the
units that are in the core of most tokens. Other rows and columns of the MLPs' weights can then be left out for texts of
that category.

References
----------
Wang, Liu, Gao, Wei, Wang & Chen (2024), CoreInfer, arXiv:2410.18311.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import xarray as xr

from neuroenc._core.checks import check_fraction, check_ids, check_texts, check_whole, one_of
from neuroenc._core.device import exact_arithmetic, resolve_device
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import hash_array
from neuroenc._core.progress import progress
from neuroenc.embedding._embedders import TextEmbedder
from neuroenc.embedding._registry import Described, is_module

RULES = ("positive", "magnitude")


class MLP(NamedTuple):
    """An MLP inside a model: names of the maps into its hidden units (two where one is a gate) and out of them."""

    name: str
    up: tuple[str, ...]
    down: str
    n_units: int


def _size(module: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a linear map; transformers' Conv1D keeps its weights transposed."""
    kind = type(module).__name__
    if kind == "Conv1D":
        return tuple(module.weight.shape)
    return (module.in_features, module.out_features) if kind == "Linear" else None


def find_mlps(model: Any) -> list[MLP]:
    """MLPs of a transformer, from early to late, one a block; of a model without blocks, its own.

    An MLP's last map is the block's linear map (outside attention) from the most inputs to fewer outputs, its first
    ones those from as many inputs as that has outputs to as many outputs as that has inputs.
    """
    from torch import nn

    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    # The blocks are the outermost list of modules that hold linear maps.
    blocks = next(
        (
            [(f"{name}.{k}" if name else str(k), block) for k, block in enumerate(m)]
            for name, m in lists
            if sum(_size(x) is not None for x in m[0].modules()) > 1
        ),
        [("", model)],
    )
    found = []
    for number, (prefix, block) in enumerate(blocks):
        linear = {n: _size(m) for n, m in block.named_modules() if _size(m) is not None and "att" not in n}
        wide = [(size[0], n) for n, size in linear.items() if size is not None and size[0] > size[1]]
        if not wide:
            continue
        n_units, down = max(wide)
        inputs = linear[down][1]  # type: ignore[index]
        up = [n for n, size in linear.items() if size == (inputs, n_units)]
        # A module of one's own may give another width than it takes.
        up = up or [n for n, size in linear.items() if size is not None and size[1] == n_units][:1]
        if up:
            full = [f"{prefix}.{n}" if prefix else n for n in (*up, down)]
            found.append(MLP(f"block{number}", tuple(full[:-1]), full[-1], n_units))
    if not found:
        raise DataError(
            f"{type(model).__name__} has no MLP that widens and narrows again: core units are of transformers' text "
            "models, or of a module like Sequential(Linear, ReLU, Linear)."
        )
    return found


def token_cores(hidden: Any, token_fraction: float, rule: str = "positive") -> Any:
    """Whether each unit is in the core of each token: the largest ``token_fraction`` of its positive activations."""
    import torch

    values = hidden if rule == "positive" else hidden.abs()
    ordered = values.sort(dim=-1, descending=True).values
    count = torch.ceil(token_fraction * (values > 0).sum(-1, keepdim=True)).long()
    least = ordered.gather(-1, (count - 1).clamp(min=0))
    return (values >= least) & (values > 0)


def _loaded(model: Any) -> tuple[Any, Any]:
    """The torch module whose MLPs are read, and the text model around it (None for a module)."""
    if is_module(model):
        return model, None
    if not isinstance(model, TextEmbedder):
        raise ConfigError(
            f"model is a {type(model).__name__}; legal are a TextEmbedder and a torch module. "
            "Next step: TextEmbedder('minilm')."
        )
    text = model._model(resolve_device(model.device))
    inner = getattr(text, "_model", None)
    if not is_module(inner) or not hasattr(text, "token_mask"):
        raise ConfigError(
            f"{model.backbone.name!r} is no transformer whose MLPs can be read. Next step: TextEmbedder('minilm') or "
            "'hf-dir:FOLDER'."
        )
    return inner, text


def unit_use(
    model: Any,
    inputs: Any,
    *,
    ids: Sequence[str] | None = None,
    token_fraction: float = 0.4,
    rule: str = "positive",
    batch_size: int = 64,
) -> xr.DataArray:
    r"""How often each hidden unit of a model's MLPs is in the core of a text's tokens.

    With the activations :math:`h_{tu}` that enter the MLP's last map, unit u is in the core of token t if
    :math:`h_{tu} > 0` and it is among the largest ``token_fraction`` of that token's positive ones. "Positive" is what
    the activation function lets through: of ReLU all that is not zero, of GELU and SiLU (which are positive where their
    input is) what is not in the small negative tail. In gated MLPs the other factor has signs of its own, and half of
    what matters is negative: take ``rule="magnitude"`` there, which goes by :math:`|h_{tu}|`.

    Parameters
    ----------
    model : TextEmbedder or torch.nn.Module
        A transformer of texts ("minilm", "hf-dir:FOLDER", ...), or a module for arrays.
    inputs : sequence of str, or array (stimulus, feature) or (stimulus, token, feature)
        Texts of an embedder; what a module reads.
    ids : sequence of str (stimulus,), optional
    token_fraction : float
        In (0, 1].
    rule : {"positive", "magnitude"}
    batch_size : int

    Returns
    -------
    DataArray (stimulus, layer, unit), float32
        Share of the tokens. Layers are named by block; of MLPs of several widths, units that are not there are NaN.

    Raises
    ------
    ConfigError
        The model is none whose MLPs can be read, or an option is not legal.
    DataError
        Inputs that are not texts, or no MLP.

    Examples
    --------
    >>> from neuroenc.embedding import TextEmbedder
    >>> use = unit_use(TextEmbedder("minilm", progress=False), ["a pizza on a plate", "a dog in the snow"])
    >>> use.shape, bool(0 <= use.min() and use.max() <= 1)
    ((2, 6, 1536), True)
    """
    import torch

    rule = one_of("rule", rule, RULES)
    if token_fraction != 1:
        token_fraction = check_fraction("token_fraction", token_fraction, also="1")
    check_whole("batch_size", batch_size)
    module, text = _loaded(model)
    mlps = find_mlps(module)
    if text is None:
        values = torch.as_tensor(np.asarray(inputs), dtype=torch.float32)
        if values.ndim not in (2, 3):
            raise DataError(f"inputs have shape {tuple(values.shape)}; expected (stimulus, [token,] feature).")
        n = len(values)
    else:
        listed = check_texts(inputs, "texts")
        n = len(listed)
    names = check_ids(ids, n, "inputs")
    out = np.full((n, len(mlps), max(m.n_units for m in mlps)), np.nan, dtype=np.float32)
    mask: list[Any] = [None]
    row = [0]

    def read(number: int) -> Any:
        def hook(_module: Any, given: tuple[Any, ...]) -> None:
            hidden = given[0]
            hidden = hidden[:, None] if hidden.ndim == 2 else hidden
            core = token_cores(hidden, token_fraction, rule).to(torch.float32)
            counted = torch.ones(core.shape[:2]) if mask[0] is None else mask[0].to(torch.float32)
            counted = counted.to(core.device)
            share = (core * counted[..., None]).sum(1) / counted.sum(1, keepdim=True).clamp(min=1)
            out[row[0] : row[0] + len(share), number, : share.shape[1]] = share.cpu().numpy()

        return hook

    handles = [module.get_submodule(m.down).register_forward_pre_hook(read(k)) for k, m in enumerate(mlps)]
    shown = getattr(model, "progress", False)
    try:
        with torch.no_grad(), exact_arithmetic(), progress(desc="units", total=n, show=shown, unit="text") as bar:
            for start in range(0, n, batch_size):
                row[0] = start
                if text is None:
                    module(values[start : start + batch_size])
                else:
                    batch = listed[start : start + batch_size]
                    mask[0] = text.token_mask(batch)
                    text.encode(batch)
                bar.update(min(batch_size, n - start))
    finally:
        for handle in handles:
            handle.remove()
    made = xr.DataArray(
        out,
        dims=("stimulus", "layer", "unit"),
        coords={"stimulus": list(names), "layer": [m.name for m in mlps], "unit": np.arange(out.shape[2])},
        name="use",
    )
    return made.assign_attrs(token_fraction=token_fraction, rule=rule)


def _most(use: np.ndarray, unit_fraction: float) -> np.ndarray:
    """The ``unit_fraction`` of the units (last axis) that are used most, bool; ties go to the first unit."""
    known = np.isfinite(use)
    count = np.ceil(unit_fraction * known.sum(axis=-1)).astype(int)
    order = np.argsort(-np.where(known, use, -np.inf), axis=-1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(use.shape[-1]), order.shape), axis=-1)
    return np.asarray(rank < count[..., None])


class CoreUnits:
    r"""Core units of categories of stimuli: the units of a model's MLPs that their texts use most.

    Of a category, the core of each layer are the ``unit_fraction`` of its units with the highest mean use
    (`unit_use`) over its stimuli. `overlap` compares categories by it, as the selectivity of regions does in the brain;
    `apply` gives the model with these units alone, which computes less.

    Parameters
    ----------
    unit_fraction : float
        In (0, 1).

    Attributes
    ----------
    cores_ : DataArray (category, layer, unit), bool

    References
    ----------
    Wang et al. (2024), CoreInfer, arXiv:2410.18311.

    Examples
    --------
    >>> from neuroenc.embedding import TextEmbedder
    >>> embedder = TextEmbedder("minilm", cache=False, progress=False)
    >>> texts = ["a pizza on a plate", "a burger with salad", "a dog in the snow", "a cat on a sofa"]
    >>> kinds = ["food", "food", "animal", "animal"]
    >>> cores = CoreUnits(0.5).fit(unit_use(embedder, texts), kinds)
    >>> cores.cores_.sizes["category"], float(cores.cores_.mean())
    (2, 0.5)
    >>> cores.apply(embedder, "food").embed(["a pizza"]).shape
    (1, 384)
    """

    def __init__(self, unit_fraction: float = 0.3) -> None:
        self.unit_fraction = check_fraction("unit_fraction", unit_fraction)

    def fit(self, use: xr.DataArray, categories: Sequence[str] | None = None) -> Self:
        """Choose the core of each category.

        Parameters
        ----------
        use : DataArray (stimulus, layer, unit)
            From `unit_use`.
        categories : sequence of str (stimulus,), optional
            Of each stimulus, or a mapping by stimulus id; default one category, "all".

        Raises
        ------
        DataError
            ``use`` is something else, or categories do not fit its stimuli.
        """
        labels = _categories(use, categories)
        names = list(dict.fromkeys(labels.tolist()))
        mean = np.stack([use.values[labels == name].mean(axis=0) for name in names])
        self.cores_ = xr.DataArray(
            _most(mean, self.unit_fraction) & np.isfinite(mean),
            dims=("category", "layer", "unit"),
            coords={"category": names, "layer": use["layer"].values, "unit": use["unit"].values},
        )
        return self

    def overlap(self, use: xr.DataArray, categories: Sequence[str]) -> xr.Dataset:
        """Jaccard overlap of the cores of single stimuli, within and between categories.

        Parameters
        ----------
        use, categories
            As in `fit`.

        Returns
        -------
        Dataset
            ``jaccard`` (category, other, layer): mean over pairs of different stimuli; ``within`` and ``between``
            (layer), means over categories and over pairs of them; ``random``, what sets of this size have in common by
            chance, :math:`f / (2 - f)`. The dissimilarity 1 - jaccard can be compared with that of regions' responses
            (`neuroenc.stats.compare_rdms`).

        Raises
        ------
        DataError
            As `fit`; a category of one stimulus has no pair.
        """
        labels = _categories(use, categories)
        names = list(dict.fromkeys(labels.tolist()))
        single = [name for name in names if (labels == name).sum() < 2]
        if single:
            raise DataError(
                f"category {single[0]!r} has one stimulus, and overlap is of pairs. Next step: two or more."
            )
        index = np.array([names.index(x) for x in labels])
        member = np.eye(len(names))[index]
        pairs = np.outer(member.sum(0), member.sum(0)) - np.diag(member.sum(0))
        found = np.empty((len(names), len(names), use.sizes["layer"]))
        for k in range(use.sizes["layer"]):
            core = _most(use.values[:, k], self.unit_fraction).astype(np.float32)
            both = core @ core.T
            size = core.sum(1)
            jaccard = both / (size[:, None] + size[None] - both)
            np.fill_diagonal(jaccard, 0.0)
            found[..., k] = member.T @ jaccard @ member / pairs
        off = ~np.eye(len(names), dtype=bool)
        between = found[off].mean(axis=0) if len(names) > 1 else np.full(found.shape[-1], np.nan)
        return xr.Dataset(
            {
                "jaccard": (("category", "other", "layer"), found),
                "within": ("layer", np.einsum("iik->ik", found).mean(axis=0)),
                "between": ("layer", between),
                "random": self.unit_fraction / (2 - self.unit_fraction),
            },
            coords={"category": names, "other": names, "layer": use["layer"].values},
        )

    def random(self, seed: int = 0) -> CoreUnits:
        """Control: as many units of each layer, drawn at random."""
        rng, made = np.random.default_rng(seed), CoreUnits(self.unit_fraction)
        drawn = self.cores_.values.copy()
        for core in drawn.reshape(-1, drawn.shape[-1]):
            core[:] = rng.permuted(core)
        made.cores_ = self.cores_.copy(data=drawn)
        return made

    def apply(self, model: Any, category: str = "all") -> Any:
        """The model with the core units of one category alone.

        Parameters
        ----------
        model : TextEmbedder or torch.nn.Module
            Of which `unit_use` was taken; it is not changed.
        category : str

        Returns
        -------
        TextEmbedder or torch.nn.Module
            Of an embedder one that has a name and hash of its own, so that the cache keeps its vectors apart.

        Raises
        ------
        ConfigError
            An unknown category, or a model with other MLPs.
        """
        names = [str(c) for c in self.cores_["category"].values]
        if category not in names:
            raise ConfigError(unknown_name("category", category, names))
        core = self.cores_.sel(category=category)
        if is_module(model):
            return sliced(model, core)
        _mlps_of(_loaded(model)[0], core)
        found = copy.copy(model)
        found.backbone, found._loaded = _CoreText(model, core, category), None
        return found


def _categories(use: Any, categories: Any) -> np.ndarray:
    if not isinstance(use, xr.DataArray) or use.dims != ("stimulus", "layer", "unit"):
        raise DataError("use is what unit_use(model, texts) gives: a DataArray (stimulus, layer, unit).")
    n = len(use)
    if categories is None:
        return np.array(["all"] * n)
    if isinstance(categories, Mapping):
        ids = use["stimulus"].values.astype(str).tolist()
        lost = [i for i in ids if i not in categories]
        if lost:
            raise DataError(f"{len(lost)} of {n} stimuli have no category, the first is {lost[0]!r}.")
        categories = [categories[i] for i in ids]
    labels = np.asarray(categories).astype(str)
    if labels.shape != (n,):
        raise DataError(f"there are {labels.size} categories for {n} stimuli; give one for each.")
    return labels


def _mlps_of(model: Any, core: xr.DataArray) -> list[MLP]:
    """MLPs of a model, if core units (layer, unit) are of these."""
    mlps = find_mlps(model)
    if [m.name for m in mlps] != core["layer"].values.tolist() or max(m.n_units for m in mlps) != core.sizes["unit"]:
        found = f"{len(mlps)} with {max(m.n_units for m in mlps)}"
        raise ConfigError(
            f"core units are of {core.sizes['layer']} layers with {core.sizes['unit']} units; the model has {found}. "
            "Next step: the model that unit_use read."
        )
    return mlps


def sliced(model: Any, core: xr.DataArray) -> Any:
    """A copy of a module whose MLPs have the units of ``core`` (layer, unit) alone."""
    import torch

    made = copy.deepcopy(model)
    for k, mlp in enumerate(_mlps_of(made, core)):
        keep = torch.from_numpy(np.flatnonzero(core.values[k]))
        for name, out in [*((n, True) for n in mlp.up), (mlp.down, False)]:
            layer = made.get_submodule(name)
            at = keep.to(layer.weight.device)
            turned = type(layer).__name__ == "Conv1D"
            weight = layer.weight.detach().index_select(1 if out == turned else 0, at)
            layer.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
            if out and layer.bias is not None:
                layer.bias = torch.nn.Parameter(layer.bias.detach()[at], requires_grad=False)
            if turned:
                layer.nf = len(keep) if out else layer.nf
            else:
                size = "out_features" if out else "in_features"
                setattr(layer, size, len(keep))
    return made


class _CoreText(Described):
    """A text backbone with the core units of a category alone."""

    def __init__(self, embedder: TextEmbedder, core: xr.DataArray, category: str) -> None:
        backbone = embedder.backbone
        self._embedder, self._whole, self._core = embedder, backbone, core
        self.name, self.weights = f"{backbone.name} (core units: {category})", backbone.weights
        self.unit_norm = backbone.unit_norm

    @property
    def preprocessing(self) -> dict[str, Any]:
        """That of the whole model."""
        return dict(self._whole.preprocessing)

    def _content(self) -> dict[str, Any]:
        return {"whole": self._whole.weights_hash(), "core": hash_array(np.packbits(self._core.values, axis=-1))}

    def layers(self) -> tuple[str, ...]:
        """Those of the whole model."""
        return tuple(self._whole.layers())

    def load(self, device: str) -> Any:
        """The model on ``device``."""
        text = copy.copy(self._embedder._model(device))  # which is loaded once, for all categories
        text._model = sliced(text._model, self._core)
        return text
