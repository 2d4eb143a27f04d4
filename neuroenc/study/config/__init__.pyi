from .captions import (
    AnalysisConfig as AnalysisConfig,
    BankConfig as BankConfig,
    CaptionsConfig as CaptionsConfig,
    DecoderConfig as DecoderConfig,
    GateConfig as GateConfig,
    GroundingConfig as GroundingConfig,
    ProjectionConfig as ProjectionConfig,
    SpaceConfig as SpaceConfig,
    StabilityConfig as StabilityConfig,
)
from .compare import CompareConfig as CompareConfig, LayersConfig as LayersConfig, RegionsConfig as RegionsConfig
from .data import (
    ALWAYS as ALWAYS,
    COMPARED as COMPARED,
    FEATURES as FEATURES,
    MOVIE as MOVIE,
    WORLD as WORLD,
    DataConfig as DataConfig,
    DecodeConfig as DecodeConfig,
    EncoderConfig as EncoderConfig,
    EvaluationConfig as EvaluationConfig,
    FeaturesConfig as FeaturesConfig,
    RegionConfig as RegionConfig,
)
from .evaluate import METHODS as METHODS, EvaluateConfig as EvaluateConfig
from .incontext import (
    FilesConfig as FilesConfig,
    IncontextConfig as IncontextConfig,
    MergeConfig as MergeConfig,
    ModelConfig as ModelConfig,
    PredictConfig as PredictConfig,
    StageConfig as StageConfig,
    TaskConfig as TaskConfig,
)
from .plan import PlanConfig as PlanConfig
from .reference import OPTIONAL as OPTIONAL, config_schema as config_schema, reference_markdown as reference_markdown
from .study import ComputeConfig as ComputeConfig, ReportConfig as ReportConfig, StudyConfig as StudyConfig
