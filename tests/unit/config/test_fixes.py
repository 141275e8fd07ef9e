"""The fix that a refused config names is one that works: each is applied and loads."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import steper_ray.config
from steper_ray.config.file import ConfigError, load_config

#: What is refused, and what the message says to do instead: values to set, None to leave a setting out.
Change = dict[str, str | None]
ON_POLICY = {"train.method": "on_policy", "train.soft_targets.teacher": "org/model"}
CASES: list[tuple[Change, list[Change]]] = [
    ({"run_dir": "$NO_SUCH_VARIABLE/x"}, [{"run_dir": "/data/x"}]),
    ({"run_dir": "~no-such-user/x"}, [{"run_dir": "/home/x"}]),
    ({"run_dir": "s3:/bucket/x"}, [{"run_dir": "s3://bucket/x"}]),
    (
        {"build.verify.judge": "0.5", "build.verify.judge_engine.kind": "vllm"},
        [{"build.verify.judge_engine.kind": "openai", "build.verify.judge_engine.url": "http://host/v1"}],
    ),
    ({"build.ask": "until_right", "build.keep": "all"}, [{"build.ask": None}, {"build.keep": "first"}]),
    ({"build.teacher": "annotation", "build.self_correct": "true"}, [{"build.self_correct": None}]),
    (
        {"build.teacher": "annotation", "build.logits": "8"},
        [{"build.logits": None}, {"build.teacher": "engine"}],
    ),
    (
        {"build.logits": "8", "engine.kind": "openai", "engine.url": "http://h/v1"},
        [{"engine.tokenizer": "o/m"}, {"build.logits": "0"}],
    ),
    (
        {
            "build.logits": "8",
            "reasoning.escalate": "{engine: {kind: openai, model: m, url: 'http://h/v1'}}",
        },
        [{"build.logits": None}, {"reasoning.escalate": None}],
    ),
    (
        {"train.method": "on_policy", "train.soft_targets.teacher": "build"},
        [{"train.soft_targets.teacher": "org/model"}, {"train.method": "steper"}],
    ),
    (
        {"train.soft_targets.teacher": "build", "train.soft_targets.temperature": "2"},
        [{"train.soft_targets.temperature": None}, {"train.soft_targets.teacher": "org/model"}],
    ),
    (
        {"train.form": "kard", "train.soft_targets.teacher": "build"},
        [{"train.method": "vanilla_kd", "train.soft_targets.teacher": "org/model"}],
    ),
    (
        {"train.form": "sail", "train.method": "vanilla_kd", "train.soft_targets.teacher": "build"},
        [{"train.form": None}, {"train.form": "chain"}],
    ),
    ({"build.teachers": "[{engine: {model: m}}]", "build.samples": "2"}, [{"build.samples": None}]),
    ({"corpus.kind": "musique"}, [{"corpus.questions": "q.jsonl"}]),
    ({"corpus.passages": "p.jsonl"}, [{"corpus.questions": "q.jsonl"}]),
    (
        {"corpus.kind": "miniature", "corpus.questions": "q.jsonl"},
        [{"corpus.questions": None}, {"corpus.kind": "auto"}],
    ),
    ({"corpus.kind": "plain", "corpus.questions": "q.jsonl"}, [{"corpus.passages": "p.jsonl"}]),
    ({"retrieval.kind": "lucene", "retrieval.links.weight": "0.5"}, [{"retrieval.kind": "bm25"}]),
    (
        {
            "reasoning.search": "{beams: 2}",
            "reasoning.escalate": "{engine: {kind: openai, model: m, url: 'http://h/v1'}}",
        },
        [{"reasoning.search": None}, {"reasoning.escalate": None}],
    ),
    (
        {"retrieval.clusters": "{probes: 8}"},
        [{"retrieval.kind": "dense"}, {"retrieval.kind": "hybrid"}, {"retrieval.clusters": None}],
    ),
    (
        {"retrieval.kind": "lucene", "retrieval.language": "german"},
        [{"retrieval.language": None}, {"retrieval.kind": "bm25"}],
    ),
    ({"engine.kind": "openai"}, [{"engine.url": "http://host:8000/v1"}]),
    (
        {
            "engine.kind": "openai",
            "engine.url": "http://h/v1",
            "engine.route": "chat",
            "engine.tokenizer": "o/m",
        },
        [{"engine.tokenizer": None}, {"engine.route": "completions"}],
    ),
    ({"build.teacher": "annotation", "build.verify.agreement": "0.5"}, [{"build.verify.agreement": None}]),
    (
        {"build.teacher": "annotation", "build.verify.judge": "0.5"},
        [{"build.verify.judge_engine.kind": "openai", "build.verify.judge_engine.url": "http://host/v1"}],
    ),
    (
        {
            "engine.kind": "openai",
            "engine.url": "http://h/v1",
            "engine.route": "chat",
            "reasoning.format": "text",
        },
        [{"reasoning.format": "auto"}, {"engine.route": "completions"}],
    ),
    (
        {
            "engine.kind": "openai",
            "engine.url": "http://h/v1",
            "engine.route": "completions",
            "reasoning.format": "chat",
        },
        [{"engine.tokenizer": "org/model"}, {"engine.route": "chat"}],
    ),
    (
        {"build.teacher": "annotation", "build.samples": "2", "sampling.temperature": "1"},
        [{"build.samples": "1"}],
    ),
    ({"build.samples": "2"}, [{"sampling.temperature": "0.7"}]),
    (
        {"serve.students": "[{name: a, model: x/a}, {name: a, model: x/b}]"},
        [{"serve.students": "[{name: a, model: x/a}, {name: b, model: x/b}]"}],
    ),
    ({"tune.settings": "{train.lr: [1]}"}, [{"tune.settings": "{reasoning.k: [2, 4]}"}]),
    ({"tune.settings": "{reasoning.k: []}"}, [{"tune.settings": "{reasoning.k: [2, 4]}"}]),
    ({"train.preset": "9b-9gpu"}, [{"train.preset": "0.5b-1gpu"}]),
    ({"train.log_sigma_bounds": "[1, -1]"}, [{"train.log_sigma_bounds": "[-1, 1]"}]),
    ({"train.attention": "flex"}, [{"train.use_gpu": "true"}, {"train.attention": "blocks"}]),
    ({"train.attention": "eager"}, [{"train.packing": "padded"}]),
    ({"train.method": "vanilla_kd", "train.steps": "first_final"}, [{"train.method": "steper"}]),
    ({"train.method": "on_policy"}, [{"train.soft_targets.teacher": "org/model"}]),
    (
        ON_POLICY | {"train.on_policy.step_weights": "divergence", "train.packing": "rows"},
        [{"train.packing": None}, {"train.on_policy.step_weights": "equal"}],
    ),
    (ON_POLICY | {"train.soft_targets.share": "0.5"}, [{"train.soft_targets.share": None}]),
    (
        ON_POLICY | {"train.method": "steper", "train.soft_targets.privileged": "true"},
        [{"train.method": "on_policy"}],
    ),
    (ON_POLICY | {"train.soft_targets.teacher": "self"}, [{"train.soft_targets.privileged": "true"}]),
    (ON_POLICY | {"train.steps": "first_final"}, [{"train.method": "steper"}]),
    (
        {"train.validation.share": "0.1", "train.validation.number": "5"},
        [{"train.validation.share": None}, {"train.validation.number": None}],
    ),
    (
        {"train.validation.keep": "best"},
        [{"train.validation.share": "0.1"}, {"train.validation.number": "5"}],
    ),
    (
        {"train.validation.questions": "5"},
        [{"train.validation.share": "0.1"}, {"train.validation.corpus.kind": "miniature"}],
    ),
    (
        {"train.validation.questions": "5", "train.validation.number": "2"},
        [{"train.validation.number": "5"}],
    ),
    (
        {
            "train.validation.questions": "5",
            "train.validation.share": "0.1",
            "train.validation.engine.kind": "openai",
            "train.validation.engine.url": "http://h/v1",
        },
        [{"train.validation.engine.kind": "vllm"}],
    ),
]


def load(settings: Change) -> None:
    load_config(None, [f"{name}={value}" for name, value in settings.items() if value is not None])


def refusal(settings: Change) -> str:
    with pytest.raises(ConfigError) as caught:
        load(settings)
    return str(caught.value)


@pytest.mark.parametrize(("refused", "fixes"), CASES, ids=[" ".join(case) for case, _ in CASES])
def test_every_fix_that_the_refusal_names_works(refused: Change, fixes: list[Change]) -> None:
    refusal(refused)
    for fix in fixes:
        load(refused | fix)


def test_every_refusal_of_the_configs_models_has_a_case() -> None:
    """Each `raise ValueError` of steper_ray/config is met by one of the cases, by its longest plain text."""
    met = "\n".join(refusal(refused) for refused, _ in CASES)
    missing = []
    for file in sorted(Path(steper_ray.config.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and "ValueError" in ast.dump(node):
                texts = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
                longest = max((text for text in texts if isinstance(text, str)), key=len)
                if longest.strip() not in met:
                    missing.append(f"{file.name}:{node.lineno}: {longest}")
    assert missing == []
