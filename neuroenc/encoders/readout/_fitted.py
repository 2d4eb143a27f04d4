"""What a fitted readout encoder does: predict, score, show its fields and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from sklearn.utils.validation import check_is_fitted

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.memory import parse_memory
from neuroenc.data import align
from neuroenc.encoders._base import LinearEncoder
from neuroenc.encoders._devices import pick_torch_device
from neuroenc.encoders._labels import match_features, wrap
from neuroenc.encoders.readout._closed import raw_weights
from neuroenc.encoders.readout._engine import predict_maps
from neuroenc.encoders.readout._linear import LinearReadout
from neuroenc.encoders.readout._losses import make_loss
from neuroenc.encoders.readout._maps import MapArray, Maps, as_maps
from neuroenc.encoders.readout._module import EncoderModule, build_module

__all__ = ["FittedReadout"]


class FittedReadout(LinearEncoder):
    """The half of `ReadoutEncoder` that comes after ``fit``."""

    readout: str
    core: Any
    loss: str
    device: str
    accelerator: Any
    batch_size: int
    standardise: bool
    max_memory: str | int | None
    readout_options: dict[str, Any] | None
    core_options: dict[str, Any] | None
    seed: int
    model_: EncoderModule
    curves_: pd.DataFrame
    sizes_: list[int]
    columns_: np.ndarray
    in_shape_: tuple[int, int, int]
    context_shape_: tuple[int, int, int] | None
    layout_: str
    dropped_: int
    images_: bool
    map_mean_: np.ndarray | None
    _context_features_: dict[str, Any] = {}  # noqa: RUF012  (replaced, never changed)
    map_scale_: np.ndarray | None

    def _build(self, core: Any) -> EncoderModule:
        return build_module(
            self.readout,
            self.readout_options,
            core,
            self.core_options,
            self.in_shape_,
            self.sizes_,
            context_shape=self.context_shape_,
            seed=self.seed,
            max_memory=2**28 if self.max_memory is None else parse_memory(self.max_memory),
        )

    def _maps(self, array: MapArray, which: str = "map") -> Maps:
        device = self.accelerator.device if hasattr(self.accelerator, "device") else pick_torch_device(self.device)
        mean, scale = getattr(self, f"{which}_mean_"), getattr(self, f"{which}_scale_")
        return Maps(array, device, mean=mean, scale=scale, max_memory=self.max_memory)

    @property
    def _evaluation_batch(self) -> int:
        # Readouts bound their own memory; the inside of a core does not.
        return self.batch_size if self.core is not None else max(self.batch_size, 512)

    def _check_context(self, X: Any, context: Any, maps: MapArray, second: MapArray) -> None:
        if len(second) != len(maps):
            raise DataError(f"features have {len(maps)} stimuli, context {len(second)}.")
        if isinstance(X, xr.DataArray) and isinstance(context, xr.DataArray):
            align(context, X)

    def _new(self, X: Any, context: Any) -> tuple[Maps, Maps | None]:
        """Features like those of `fit`, standardised."""
        check_is_fitted(self, "model_")
        X = match_features(self._features_, X)
        if context is not None:
            context = match_features(self._context_features_, context, "context")
        maps, second = as_maps(X), None if context is None else as_maps(context)
        if maps.shape[1:] != tuple(self.in_shape_) or (maps.dtype == np.uint8) != self.images_:
            raise DataError(
                f"features have shape {maps.shape[1:]} a stimulus and dtype {maps.dtype}; this encoder was fitted on "
                f"{tuple(self.in_shape_)}, {'uint8' if self.images_ else 'not uint8'}."
            )
        expected = None if self.context_shape_ is None else tuple(self.context_shape_)
        found = None if second is None else second.shape[1:]
        if found != expected:
            raise DataError(
                f"context has shape {found} a stimulus; this encoder was fitted with {expected}. "
                "Next step: pass the same context= to fit and predict."
            )
        if second is not None:
            self._check_context(X, context, maps, second)
        return self._maps(maps), None if second is None else self._maps(second, "context")

    def predict(self, X: Any, context: Any = None) -> Any:
        """Predicted responses (n, voxel), in the form of ``X``; rates for ``"poisson"``."""
        maps, second = self._new(X, context)
        self.model_.to(maps.device)
        out = predict_maps(self.model_, maps, second, torch.arange(len(maps)), self._evaluation_batch)
        values = make_loss(self.loss).response(out).cpu().numpy()
        predicted = np.empty_like(values)
        predicted[:, self.columns_] = values
        if self._single_voxel_:
            predicted = predicted[:, 0]
        return wrap(predicted, X, self._voxels_, name="predicted")

    def score_voxels(self, X: Any, Y: Any, metric: str = "r", context: Any = None) -> Any:
        """Score (voxel,) on new stimuli, of those that each voxel saw; see `LinearEncoder.score_voxels`."""
        return self._scores(X, Y, self.predict(X, context), metric)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Mean R2 over voxels, of the stimuli that each saw."""
        if sample_weight is not None:
            raise ConfigError("sample_weight is not supported: every stimulus that a voxel saw counts the same.")
        return float(np.nanmean(np.asarray(self.score_voxels(X, y, "r2"))))

    def _labelled(self, found: xr.Dataset) -> xr.Dataset:
        back = np.argsort(self.columns_)
        return self._placed(found.isel(voxel=back).assign_coords(self._voxels_ or {"voxel": np.arange(len(back))}))

    def receptive_field(self) -> xr.Dataset | None:
        """Centre ``x``, ``y`` and ``size`` of each voxel, or None where the readout has no places.

        Positions are in [-1, 1], x to the right and y down, -1 and 1 the outer edges of the features' field of view.
        """
        check_is_fitted(self, "model_")
        found = self.model_.receptive_field()
        if found is None:
            return None
        data = xr.Dataset({k: ("voxel", v) for k, v in found.items()})
        data.attrs = {"units": "field of view is 2 wide; y down", "readout": self.readout}
        return self._labelled(data)

    def weights(self) -> xr.Dataset:
        """Weights over voxel and channel, y, x; of standardised maps where ``standardise`` is true."""
        check_is_fitted(self, "model_")
        found = self._labelled(self.model_.weights())
        attrs = {"standardised": int(self.standardise), "readout": self.readout, "units": self._units_}
        return found.assign_attrs(attrs)

    def warp_spread(self, X: Any, context: Any = None) -> xr.Dataset | None:
        """How much each voxel's mask moves with content (s.d. over ``X``), or None where nothing moves."""
        maps, second = self._new(X, context)
        rows = torch.arange(len(maps))
        self.model_.to(maps.device).eval()
        cases = None if second is None else second.rows(rows)
        found = self.model_.warp_spread(maps.rows(rows), cases, self.batch_size)
        return None if found is None else self._labelled(xr.Dataset({k: ("voxel", v) for k, v in found.items()}))

    def to_linear(self) -> tuple[xr.DataArray, xr.DataArray]:
        """Weights (feature, voxel) and intercepts (voxel,) of linear readouts.

        They are on the features as `fit` took them, flattened in C order and not standardised.

        Raises
        ------
        ConfigError
            The readout is not linear, or reads a core.
        """
        check_is_fitted(self, "model_")
        if self.core is not None or not all(isinstance(r, LinearReadout) for r in self.model_.each):
            raise ConfigError(
                f"readout {self.readout!r} with core {self.core!r} has no weights on the features themselves. "
                "Next step: readout='linear' or 'pooled' without a core, or encoder.weights()."
            )
        parts = [raw_weights(r, self.map_mean_, self.map_scale_, self.layout_, self.dropped_) for r in self.model_.each]
        back = np.argsort(self.columns_)
        coef = np.concatenate([c for c, _ in parts], axis=1)[:, back]
        return self._label_linear(coef, np.concatenate([b for _, b in parts])[back])

    def _pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, plain = super()._pack()
        state = plain.pop("model_").state_dict()
        arrays.update({f"model:{name}": value.detach().cpu().numpy() for name, value in state.items()})
        plain["curves_"] = plain["curves_"].to_dict("list")
        plain["core_is_module_"] = isinstance(self.core, torch.nn.Module)
        plain["core_text_"] = repr(self.core) if plain["core_is_module_"] else ""
        return arrays, plain

    def _unpack(self, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        super()._unpack({k: v for k, v in arrays.items() if not k.startswith("model:")}, plain)
        self.curves_ = pd.DataFrame(plain["curves_"]).astype({"validation_r": np.float64})
        self.in_shape_ = tuple(self.in_shape_)  # type: ignore[assignment]
        if self.context_shape_ is not None:
            self.context_shape_ = tuple(self.context_shape_)  # type: ignore[assignment]
        if self.accelerator != "auto":
            self.accelerator = None  # an object of the process in which the encoder was fitted
        if plain["core_is_module_"] and not isinstance(self.core, torch.nn.Module):
            raise ConfigError(
                "this encoder was fitted with a module of your own as its core, of which only the weights were saved. "
                "Next step: ReadoutEncoder.load(path, core=module)."
            )
        text = plain.get("core_text_", "")
        if text and repr(self.core) != text:
            raise DataError(f"this encoder was fitted with another core: {text}; found {self.core!r}.")
        self.model_ = self._build(self.core)
        state = {k.removeprefix("model:"): torch.as_tensor(v) for k, v in arrays.items() if k.startswith("model:")}
        self.model_.load_state_dict(state)
        self.model_.eval()
