"""The data card of an export: the YAML header that `datasets` and the hub read, and what a person should know. Pure."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from steper_ray.data.inspection import KEPT, Inspection
from steper_ray.data.measures import spread
from steper_ray.data.portable import portable
from steper_ray.schema import Ability

_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
_OF_EXAMPLES = {
    "id": "the trajectory's id and the step",
    "question_id": "the trajectory's id: examples that share it share one chain",
    "step": "the step whose prompt this is, from 1",
    "n_steps": "steps of the whole trajectory",
    "ability": "what the example teaches: initialization (first step), expansion, aggregation (last step)",
    "question": "the question as it was asked",
    "passages": "the passages that were new at each step, up to this one",
    "chain": "the reasoning of each step, up to this one: what is to be learned",
    "framework": "how a chain is cut into steps and laid out",
    "prompt": "passages and question as text, without demonstrations",
    "completion": "the chain as text; an end of sequence is to follow",
}
_OF_TRAJECTORIES = {
    "id": "the question's id, with the numbers of a further sample or second chance; `question_id` of the examples",
    "question": "the question with all accepted answers, its gold passages and decomposition where they are known",
    "framework": "how the chain is cut into steps",
    "steps": "each step's query, the passages it found with their scores, the reasoning, tokens and seconds",
    "answer": "the answer that the last step states",
    "stop_reason": "why the trajectory ended",
    "error": "what went wrong; empty for what was kept",
    "source": "the teacher",
    "sample": "number of the trajectory among those of its question, from 0",
    "attempt": "1 for a second chance, in which the teacher saw the wrong chain of its first attempt",
}
FIELDS = {"examples": _OF_EXAMPLES, "trajectories": _OF_TRAJECTORIES}


def card(
    title: str,
    manifest: dict[str, Any],
    found: Inspection,
    schemas: dict[str, pa.Schema],
    language: str,
) -> str:
    """README.md of an export with this manifest; the first of `schemas` is the default config."""
    environment = Environment(
        loader=PackageLoader("steper_ray.data"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    recall = next(((key, value) for key, value in manifest.items() if key.startswith("recall@")), None)
    lengths = {"steps": found.steps_kept, "passages": found.passages, "words a step": found.words}
    return environment.get_template("card.md").render(
        header=_header(title, manifest, list(schemas), language),
        title=title,
        manifest=manifest,
        config=manifest["config"],
        splits=manifest["splits"],
        counts=manifest["counts"],
        verify=manifest["config"]["build"]["verify"],
        sources={portable(name): pair for name, pair in sorted(found.sources.items())},
        fates=sorted(found.fates.items(), key=lambda pair: (pair[0] != KEPT, pair[0])),
        kept=KEPT,
        lengths={name: three for name, counted in lengths.items() if (three := spread(counted))},
        recall=recall,
        of_examples={ability: found.lengths[ability] for ability in Ability if ability in found.lengths},
        spread=spread,
        repeats=found.repeats,
        cost=found.cost,
        settings=yaml.safe_dump(manifest["config"], sort_keys=False, allow_unicode=True),
        fields={
            config: [
                (field.name, type_name(field.type), FIELDS[config].get(field.name, "")) for field in schema
            ]
            for config, schema in schemas.items()
        },
    )


def type_name(kind: pa.DataType) -> str:
    """An Arrow type in short: `list of {id, title, text}`."""
    if pa.types.is_list(kind):
        return f"list of {type_name(kind.value_type)}"
    if pa.types.is_struct(kind):
        return "{" + ", ".join(field.name for field in kind) + "}"
    return str(kind)


def _header(title: str, manifest: dict[str, Any], configs: list[str], language: str) -> str:
    splits = manifest["splits"]["rows"]
    rows = sum(splits[configs[0]].values())
    config = manifest["config"]
    header = {
        "pretty_name": title,
        "language": [language],
        "task_categories": ["question-answering", "text-generation"],
        "size_categories": [next((name for bound, name in _SIZES if rows < bound), "n>10M")],
        "tags": [
            "multi-hop-question-answering",
            "retrieval-augmented-generation",
            "reasoning",
            "knowledge-distillation",
            "steper",
            config["reasoning"]["framework"],
            config["corpus"]["kind"],
        ],
        "configs": [
            {
                "config_name": name,
                **({"default": True} if name == configs[0] else {}),
                "data_files": [
                    {"split": split, "path": f"data/{name}/{split}-*.parquet"} for split in splits[name]
                ],
            }
            for name in configs
        ],
    }
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True)


def _cell(value: object) -> str:
    """One cell of a table: what stands in it cannot end it."""
    return " ".join(str(value).split()).replace("|", "\\|")
