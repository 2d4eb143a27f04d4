"""Settings of a comparison of readouts, ``[compare]``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.study.config.table import MOST, Count, Share, Table


class RegionsConfig(Table):
    """Three-region analysis: is a voxel best predicted by vision, dense captions or single captions?

    Attributes
    ----------
    vision
        Feature space of images.
    dense
        Feature space of captions of image cells.
    single
        Feature space of whole-image captions.
    readouts
        Readouts to take the better of; empty: all that read the three spaces.
    """

    vision: str
    dense: str
    single: str
    readouts: list[str] = []


class LayersConfig(Table):
    """Layer assignment: which layer of a network predicts a voxel best.

    Attributes
    ----------
    order
        Feature spaces from early to late, two or more.
    readout
        The readout that compares them.
    dims
        Numbers of dimensions, rising, at which ridge reads each layer besides; empty: not asked.
    reduce
        Dimensions are first principal components of the training stimuli, "pca", or the first of the space, "prefix".
    share
        Of the best score, that the cheapest layer and number of dimensions are to keep.
    """

    order: Annotated[list[str], Field(min_length=2)]
    readout: str = "linear"
    dims: list[Count] = []
    reduce: Literal["pca", "prefix"] = "pca"
    share: Share = 0.95

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if sorted(set(self.dims)) != self.dims:
            raise ConfigError(f"dims={self.dims} must rise. Next step: dims = {sorted(set(self.dims))}.")
        return self


class CompareConfig(Table):
    """Comparison of every feature space through every readout.

    Attributes
    ----------
    readouts
        Readouts by label, ``[compare.readouts.NAME]``: ``readout`` (which one; the label where left out), its options,
        and arguments of `neuroenc.encoders.readout.ReadoutEncoder`; see `neuroenc.encoders.comparison.compare`.
    cores
        Trained convolutional cores by label, ``[compare.cores.NAME]``: ``features`` (the spaces it reads), ``core``,
        and options.
    cells
        Cells to keep, ``"space/readout"`` or ``"space/core/readout"``, ``*`` for anything; empty: all.
    matched
        Give every trained readout a control of as many parameters, ``NAME-matched``: a linear readout of that rank on
        the same features.
    cv
        Outer folds of every cell, a column whose values are left out in turn, or "evaluation": the folds of
        ``[evaluation]``.
    validation
        Share of the training stimuli that stops training and chooses between candidates.
    n_candidates
        Settings tried for each readout that is trained.
    n_bootstraps
        Bootstrap samples of stimuli, for intervals and paired tests.
    q
        False discovery rate of comparisons between cells.
    unique
        Feature spaces whose unique variance is told: what each predicts that the others do not, by joint models. true:
        all that ridge reads, where these are two to eight.
    n_components
        Principal components of each space in the joint models, fitted on training stimuli.
    joint
        Models of all spaces that ridge reads, or of those in ``layers.order``, as rows ``all/stacked`` (a convex
        combination of their ridge predictions, for every voxel) and ``all/banded`` (banded ridge). With ``layers`` the
        stack also tells between which layers each voxel lies.
    transfer
        With several subjects or a ``join`` of sessions or tasks: ridge on the best feature space is fitted on each and
        tested on each, over the same voxels, "voxel", or the means of regions that all have, "roi". Empty: not asked.
    field_of_view
        Width of the pictures in degrees of visual angle, for maps of receptive fields; 0: shares of the width.
    decode
        Tell besides how often every cell identifies the held-out stimulus that was seen: ``true``, by correlation over
        voxels; ``"likelihood"``, under the noise covariance of the other folds, of which there must be two.
    learning_curve
        Numbers of training stimuli at which every cell is fitted besides; empty: not asked.
    training
        Arguments of `neuroenc.encoders.readout.ReadoutEncoder` for all cells that are trained by gradients; ``preset =
        "published"`` takes those left out from the readout comparison as it was published.
    regions
        Three-region analysis; left out without the table.
    layers
        Layer assignment; left out without the table.
    """

    readouts: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] = {"linear": {}}
    cores: dict[str, dict[str, Any]] = {}
    cells: list[str] = []
    matched: bool = False
    cv: Annotated[int, Field(ge=2, le=MOST)] | str = 5
    validation: Share = 0.2
    n_candidates: Count = 3
    n_bootstraps: Count = 1000
    q: Share = 0.05
    unique: list[str] | bool = True
    n_components: Count = 100
    joint: list[Literal["stacked", "banded"]] = []
    transfer: Literal["", "voxel", "roi"] = ""
    decode: bool | Literal["likelihood"] = False
    learning_curve: list[Annotated[int, Field(ge=10, le=MOST)]] = []
    field_of_view: Annotated[float, Field(ge=0)] = 0.0
    training: dict[str, Any] = {}
    regions: RegionsConfig | None = None
    layers: LayersConfig | None = None

    def all_readouts(self) -> dict[str, dict[str, Any]]:
        """The readouts, and with ``matched`` a control for each that is trained."""
        plain = ("linear", "pooled", "lowrank")
        trained = (
            [k for k, given in self.readouts.items() if given.get("readout", k) not in plain] if self.matched else []
        )
        return self.readouts | {f"{k}-matched": {"readout": "lowrank", "matches": k} for k in trained}

    @model_validator(mode="after")
    def _known_readouts(self) -> Self:
        named = [("layers.readout", self.layers.readout)] if self.layers else []
        named += [("regions.readouts", name) for name in self.regions.readouts] if self.regions else []
        if self.learning_curve != sorted(set(self.learning_curve)):
            raise ConfigError(f"learning_curve = {self.learning_curve} must rise.")
        for where, name in named:
            if name not in self.readouts:
                raise ConfigError(unknown_name(f"value of {where}:", name, self.readouts))
        return self
