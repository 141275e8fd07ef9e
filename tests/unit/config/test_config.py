"""Config files and overrides: what is accepted resolves and survives a round trip, what is not names the fix."""

from pathlib import Path

import pytest

from steper_ray.config import Config
from steper_ray.config.file import ConfigError, load_config
from steper_ray.config.presets import PRESETS

CONFIGS = sorted((Path(__file__).parents[3] / "jobs" / "configs").glob("*.yaml"))
PAPER = [path for path in CONFIGS if path.stem.startswith("paper_")]


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(path=None, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_the_shipped_configs_are_all_there():
    assert {path.stem for path in CONFIGS} == {
        "miniature",
        "paper_hotpotqa",
        "paper_2wiki",
        "paper_musique",
        "single_gpu",
        "annotation_musique",
        "real_2wiki",
        "rl_protocol",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_resolves_and_its_dump_reads_back_equal(path, tmp_path):
    config = load_config(path)
    assert load_config(write(tmp_path, config.dump())) == config


def test_no_two_shipped_configs_write_into_the_same_folder():
    assert len({load_config(path).run_dir for path in CONFIGS}) == len(CONFIGS)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_a_paper_config_holds_the_papers_settings(path):
    config = load_config(path)
    assert config.engine.model == "meta-llama/Llama-3.1-70B-Instruct"
    assert config.engine.tensor_parallel_size == config.build.num_gpus == 4
    assert config.train.student == "meta-llama/Llama-3.1-8B"
    assert (config.reasoning.max_steps, config.reasoning.k) == (5, 4)
    assert (config.train.lr, config.train.epochs) == (5e-6, 2)
    assert (config.train.zero_stage, config.train.workers, config.train.gradient_checkpointing) == (
        3,
        4,
        True,
    )


def test_a_gpu_config_reserves_the_gpus_its_engine_spans():
    for path in CONFIGS:
        config = load_config(path)
        if config.engine.kind == "vllm" and config.train.use_gpu:
            assert config.build.num_gpus == config.engine.tensor_parallel_size, path.name


def test_the_default_config_is_the_miniature_world_on_cpus():
    config = load_config()
    assert config == Config()
    assert (config.corpus.kind, config.engine.kind, config.train.use_gpu) == (
        "auto",
        "transformers",
        False,
    )


def test_an_empty_file_is_the_default_config(tmp_path):
    assert load_config(write(tmp_path, "# nothing\n")) == Config()


def test_save_writes_what_load_reads(tmp_path):
    config = load_config(overrides=["train.lr=1e-3", "reasoning.deadline_s=2.5", "evaluate.units=[chain]"])
    config.save(tmp_path / "deep" / "er")
    assert load_config(tmp_path / "deep" / "er" / "config.yaml") == config


def test_overrides_lie_over_the_file_and_leave_its_other_fields(tmp_path):
    path = write(tmp_path, "train: {epochs: 5, lr: 0.1}\n")
    config = load_config(path, ["train.epochs=7", "run_dir=elsewhere", "corpus.miniature.worlds=3"])
    assert (config.train.epochs, config.train.lr) == (7, 0.1)
    assert (config.run_dir, config.corpus.miniature.worlds) == (Path("elsewhere"), 3)


def test_of_two_overrides_of_a_field_the_later_one_counts():
    assert load_config(overrides=["train.epochs=3", "train.epochs=4"]).train.epochs == 4


def test_an_override_may_hold_a_list_null_and_an_equals_sign():
    config = load_config(overrides=["demo.seeds=[4, 5]", "reasoning.deadline_s=null", "engine.model=a=b"])
    assert (config.demo.seeds, config.reasoning.deadline_s, config.engine.model) == ((4, 5), None, "a=b")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train: {epoch: 3}", ["train.epoch: unknown field", "did you mean 'epochs'?"]),
        ("trian: {}", ["trian: unknown field", "did you mean 'train'?"]),
        ("corpus: {miniature: {world: 3}}", ["corpus.miniature.world: unknown field", "'worlds'"]),
        ("serve: {zzz: 3}", ["serve.zzz: unknown field", "fields here: host, port"]),
        ("train: {epochs: 0}", ["train.epochs", "greater than or equal to 1", "given: 0"]),
        ("reasoning: {k: -1}", ["reasoning.k", "greater than or equal to 0", "given: -1"]),
        ("retrieval: {b: 1.5}", ["retrieval.b", "less than or equal to 1"]),
        ("train: {lr: fast}", ["train.lr", "valid number", "'fast'"]),
        ("retrieval: {kind: elastic}", ["retrieval.kind", "'bm25', 'lucene', 'dense' or 'hybrid'"]),
        ("train: {zero_stage: 4}", ["train.zero_stage", "0, 1, 2 or 3"]),
        ("train: {fixed_weights: [1, 2]}", ["train.fixed_weights.2", "required"]),
    ],
)
def test_a_wrong_field_ends_in_file_path_and_fix(tmp_path, text, parts):
    path = write(tmp_path, text)
    told = message(path)
    assert told.startswith(f"{path}: ")
    assert [part for part in parts if part not in told] == []


def test_all_wrong_fields_are_told_at_once(tmp_path):
    lines = message(write(tmp_path, "train: {epochs: 0, lr: -1}\nserve: {port: 70000}\n")).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["train.epochs", "train.lr", "serve.port"]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["corpus.kind=hotpotqa"], ["corpus", "needs `questions`: the path"]),
        (["corpus.kind=plain", "corpus.questions=q.jsonl"], ["corpus", "needs `passages`: the path"]),
        (["evaluate.corpus={kind: musique}"], ["evaluate.corpus", "needs `questions`"]),
        (["engine.kind=openai"], ["engine", "needs `url`, such as http://host:8000/v1"]),
        (
            ["engine={kind: openai, url: 'http://x/v1', route: chat}", "reasoning.format=text"],
            ["engine.route=completions"],
        ),
        (
            ["engine={kind: openai, url: 'http://x/v1', route: completions}", "reasoning.format=chat"],
            ["engine.tokenizer", "engine.route=chat"],
        ),
        (["train.log_sigma_bounds=[1, -1]"], ["train", "low < high"]),
    ],
)
def test_fields_that_do_not_go_together_name_the_one_to_change(overrides, parts):
    told = message(overrides=overrides)
    assert [part for part in parts if part not in told] == []


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.epochs", "write section.field=value"),
        ("train.epochs.deep=1", "'epochs' is a value, not a section"),
        ("train.epochs=[1", "not valid YAML"),
        ("train.epoch=3", "did you mean 'epochs'?"),
    ],
)
def test_a_wrong_override_is_named(tmp_path, override, part):
    path = write(tmp_path, "train: {epochs: 5}\n")
    assert part in message(path, [override])


def test_a_missing_file_is_named(tmp_path):
    assert message(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such config file"


def test_yaml_that_does_not_parse_names_file_and_line(tmp_path):
    path = write(tmp_path, "train:\n  epochs: [1\n")
    told = message(path)
    assert told.startswith(f"{path}: not valid YAML")
    assert "line" in told


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    assert "a config is a mapping of sections, this is a list" in message(write(tmp_path, "- train\n"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["build.samples=2"], "set sampling.temperature, such as 0.7"),
        (["build.samples=2", "sampling.temperature=1", "build.teacher=annotation"], "set build.samples=1"),
    ],
)
def test_samples_that_could_not_differ_are_refused(overrides, says):
    assert says in message(overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["corpus.kind=miniature", "corpus.questions=q.json"], "leave them out, or set kind 'auto'"),
        (["corpus.passages=p.json"], "`passages` without `questions`"),
        (["corpus.kind=hotpotqa"], "needs `questions`"),
        (["build.verify.agreement=1", "build.teacher=annotation"], "annotations have no other drafts"),
        (["build.verify.judge=1", "build.teacher=annotation"], "set build.verify.judge_engine"),
        (["build.verify.judge_engine.kind=vllm"], "serve the judge and name its url"),
        (["build.verify.grounding=1.1"], "build.verify.grounding"),
    ],
)
def test_a_verifier_that_cannot_run_is_refused_with_the_fix(overrides, says):
    assert says in message(overrides=overrides)


def test_vanilla_kd_has_one_step_to_learn():
    assert "goes with method steper" in message(
        overrides=["train.method=vanilla_kd", "train.steps=first_final"]
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_how_to_run_and_nothing_of_what_is_learned(name, tmp_path):
    config = load_config(overrides=[f"train.preset={name}"])
    default = Config().train.model_dump()
    changed = {field for field, value in config.train.model_dump().items() if value != default[field]}
    assert "preset" in changed
    assert changed <= {
        "preset",
        "use_gpu",
        "workers",
        "num_cpus",
        "zero_stage",
        "offload",
        "gradient_checkpointing",
        "row_tokens",
    }
    assert load_config(write(tmp_path, config.dump())) == config


def test_what_is_set_beside_a_preset_wins_wherever_it_is_set(tmp_path):
    settings = {
        "workers": 3,
        "offload": True,
        "row_tokens": 4096,
        "gradient_checkpointing": False,
        "zero_stage": 1,
    }
    plain = load_config(overrides=["train.preset=8b-4gpu"]).train
    assert (plain.workers, plain.use_gpu, plain.zero_stage, plain.row_tokens) == (4, True, 3, 8192)
    lines = "".join(f"  {field}: {value}\n" for field, value in settings.items())
    in_file = load_config(write(tmp_path, f"train:\n{lines}"), ["train.preset=8b-4gpu"]).train
    above = [f"train.{field}={value}" for field, value in settings.items()]
    by_override = load_config(write(tmp_path, "train: {preset: 8b-4gpu}\n"), above).train
    assert in_file == by_override == plain.model_copy(update=settings)


def test_a_preset_that_is_not_there_is_named_with_those_that_are():
    told = message(overrides=["train.preset=8b-3gpu"])
    assert "no preset '8b-3gpu'" in told
    assert "8b-4gpu" in told


def test_lora_is_off_until_it_is_asked_for_by_any_of_its_settings():
    assert load_config().train.lora is None
    assert load_config(overrides=["train.lora={}"]).train.lora.rank == 16
    lora = load_config(overrides=["train.lora.rank=4", "train.lora.target_modules=[q_proj]"]).train.lora
    assert (lora.rank, lora.target_modules, lora.merge) == (4, ("q_proj",), True)
    assert "did you mean 'rank'?" in message(overrides=["train.lora.ranks=4"])


def test_what_is_held_out_is_said_once_and_questions_are_never_learned_from():
    assert "share and trajectories say both what is held out" in message(
        None, ["train.validation.share=0.1", "train.validation.trajectories=x.parquet"]
    )
    assert "keep 'best' needs held-out examples" in message(None, ["train.validation.keep=best"])
    assert "questions need share or number" in message(None, ["train.validation.questions=5"])
    assert "questions 5 are more than are held out: number 4" in message(
        None, ["train.validation.number=4", "train.validation.questions=5"]
    )
    endpoint = "train.validation.engine={kind: openai, model: m, url: 'http://localhost/v1'}"
    assert "an endpoint cannot load the student" in message(None, [endpoint])
    assert load_config(
        None, ["train.validation={share: 0.1, questions: 5, keep: best}"]
    ).train.validation.held_out
    assert not Config().train.validation.held_out
