"""Configuration: one pydantic model a stage, all of them sections of one YAML file (see file.py).

The resolved config is written beside every result. It knows no other room of the project.
"""

from steper_ray.config.base import Section
from steper_ray.config.build import AnnotationConfig, BuildConfig, TeacherConfig, VerifyConfig
from steper_ray.config.data import (
    ClustersConfig,
    CorpusConfig,
    EncoderConfig,
    FusionConfig,
    LinksConfig,
    MiniatureConfig,
    RerankerConfig,
    RetrievalConfig,
)
from steper_ray.config.reasoning import (
    EngineConfig,
    EscalateConfig,
    PromptConfig,
    ReasoningConfig,
    SamplingConfig,
    SearchConfig,
)
from steper_ray.config.run import Config, DemoConfig, EvaluateConfig, JudgeConfig, TuneConfig
from steper_ray.config.serve import (
    AutoscaleConfig,
    RetrieverServeConfig,
    ServeConfig,
    StudentConfig,
)
from steper_ray.config.train import BUILD, LoraConfig, OnPolicyConfig, SoftTargetsConfig, TrainConfig
from steper_ray.config.validation import ValidationConfig

__all__ = [
    "BUILD",
    "AnnotationConfig",
    "AutoscaleConfig",
    "BuildConfig",
    "ClustersConfig",
    "Config",
    "CorpusConfig",
    "DemoConfig",
    "EncoderConfig",
    "EngineConfig",
    "EscalateConfig",
    "EvaluateConfig",
    "FusionConfig",
    "JudgeConfig",
    "LinksConfig",
    "LoraConfig",
    "MiniatureConfig",
    "OnPolicyConfig",
    "PromptConfig",
    "ReasoningConfig",
    "RerankerConfig",
    "RetrievalConfig",
    "RetrieverServeConfig",
    "SamplingConfig",
    "SearchConfig",
    "Section",
    "ServeConfig",
    "SoftTargetsConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainConfig",
    "TuneConfig",
    "ValidationConfig",
    "VerifyConfig",
]
