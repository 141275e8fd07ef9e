"""Step-wise knowledge distillation for multi-step retrieval-augmented reasoning, on Ray.

    from steper_ray import Client, build, evaluate, load_config, predict, train

    config = load_config("mine.yaml", ["reasoning.k=8"])
    build(config)
    student = train(config)
    scores = evaluate(config, [f"mine={student.model_dir}"])
    answers = predict(config, f"mine={student.model_dir}")

Names are imported when they are first used, so `import steper_ray` needs neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steper_ray.client import Client
    from steper_ray.config.file import load_config
    from steper_ray.stages import build, evaluate, predict, train

__version__ = "0.2.0.dev0"
__all__ = ["Client", "__version__", "build", "evaluate", "load_config", "predict", "train"]

_HOMES = {
    "Client": "steper_ray.client",
    "build": "steper_ray.stages",
    "evaluate": "steper_ray.stages",
    "load_config": "steper_ray.config.file",
    "predict": "steper_ray.stages",
    "train": "steper_ray.stages",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'steper_ray' has no attribute '{name}'")
