"""Settings of a whole study, one TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator

from neuroenc._core.errors import ConfigError
from neuroenc.study.config.captions import CaptionsConfig
from neuroenc.study.config.compare import CompareConfig
from neuroenc.study.config.data import DataConfig, DecodeConfig, EncoderConfig, EvaluationConfig, FeaturesConfig
from neuroenc.study.config.incontext import IncontextConfig
from neuroenc.study.config.plan import PlanConfig
from neuroenc.study.config.table import Count, Seed, Table


class ReportConfig(Table):
    """The report.

    Attributes
    ----------
    without
        Sections that are left out.
    figures
        Figures for print of regions with 10 captioned voxels, under report/figures.
    """

    without: list[Literal["maps", "captions", "comparison"]] = []
    figures: bool = True


class ComputeConfig(Table):
    """Where tasks run. Results do not depend on it.

    Attributes
    ----------
    workers
        Processes of this machine.
    client
        A Dask client instead: "tcp://HOST:PORT", or "local:4" for four workers of this machine.
    threads
        Threads of each process.
    """

    workers: Count = 1
    client: str = ""
    threads: Count = 1


class StudyConfig(Table):
    """A whole study. A command reads the tables it needs; an optional table with ``enabled = false`` is left out.

    Attributes
    ----------
    title
        Title of the report.
    seed
        Of everything random that has no seed of its own.
    notes
        Sentences that the report shows with the results.
    data
        Responses and stimuli.
    features
        Feature spaces by name.
    encoder
        Ridge regression.
    evaluation
        Held-out rows and tests.
    decode
        Which stimulus was seen; optional.
    compare
        Comparison of readouts; optional.
    incontext
        In-context encoders; optional.
    captions
        Voxel captions; optional.
    plan
        Which pictures to show to a new subject; optional.
    report
        The report.
    compute
        Where tasks run.

    Examples
    --------
    >>> StudyConfig(data={"name": "nsd"}, features={"clip": FeaturesConfig(model="ViT-B-32")}).features["clip"].kind
    'image'
    """

    title: str = "Voxelwise encoding"
    seed: Seed = 0
    notes: list[str] = []
    data: DataConfig = DataConfig()
    features: dict[str, FeaturesConfig] = {}
    encoder: EncoderConfig = EncoderConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    decode: DecodeConfig | None = None
    compare: CompareConfig | None = None
    incontext: IncontextConfig | None = None
    captions: CaptionsConfig | None = None
    plan: PlanConfig | None = None
    report: ReportConfig = ReportConfig()
    compute: ComputeConfig = ComputeConfig()

    @field_validator("features", mode="before")
    @classmethod
    def _a_space_for_each_layer(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        spaces: dict[Any, Any] = {}
        for name, table in given.items():
            table = table.model_dump(exclude_unset=True) if isinstance(table, FeaturesConfig) else table
            layers = table.get("layers") if isinstance(table, Mapping) else None
            aspects: Any = None
            if isinstance(table, Mapping) and table.get("kind") == "aspects":
                aspects = table.get("aspects", FeaturesConfig.model_fields["aspects"].default)
            if isinstance(aspects, (list, tuple)) and len(aspects) > 1:
                new = {f"{name}.{aspect}": {**table, "aspects": [aspect]} for aspect in aspects}
            elif not isinstance(layers, (list, tuple)) or not layers:
                new = {name: table}
            elif table.get("layer"):
                raise ConfigError(
                    f"{name} has layer = {table['layer']!r} and layers = {layers}; leave one of them out."
                )
            else:
                rest = {k: v for k, v in table.items() if k != "layers"}
                new = {f"{name}.{layer}": {**rest, "layer": layer} for layer in layers}
            double = sorted(set(map(str, new)) & set(map(str, spaces)))
            if double:
                raise ConfigError(f"two feature spaces are named {double[0]!r}. Next step: name one of them otherwise.")
            spaces |= new
        return spaces
