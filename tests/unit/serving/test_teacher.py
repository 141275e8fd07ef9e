"""What a shared teacher is deployed with: the config's engine, its place, and no prompt in a log."""

import pytest

from steper_ray.config.file import load_config
from steper_ray.core.errors import ModelError
from steper_ray.models import resolve_model
from steper_ray.serving.teacher import TeacherArgs, openai_args, served_name

SMALL = ("engine.kind=vllm", "engine.max_model_len=512", "engine.max_batch=7", "engine.timeout_s=33")


def teacher(*overrides, replicas=1, **settings):
    args = openai_args(load_config(None, [*SMALL, *overrides]), replicas, **settings)
    [config] = args["llm_configs"]
    return config, args["ingress_deployment_config"]


def test_the_configs_engine_is_deployed_with_its_settings():
    config, ingress = teacher(replicas=3)
    folder = resolve_model("miniature:teacher")
    assert config["model_loading_config"] == {"model_id": "teacher", "model_source": folder}
    wanted = {"max_model_len": 512, "max_num_seqs": 7, "dtype": "float32", "tokenizer": folder}
    assert wanted.items() <= config["engine_kwargs"].items()
    assert config["deployment_config"]["num_replicas"] == ingress["num_replicas"] == 3
    assert config["deployment_config"]["max_ongoing_requests"] == 7
    assert config["deployment_config"]["graceful_shutdown_timeout_s"] == 33


def test_without_gpus_each_engine_has_the_cpus_that_the_config_reserves():
    config, _ = teacher("build.num_cpus=2")
    assert config["placement_group_config"] == {"bundle_per_worker": {"CPU": 2}}
    assert config["deployment_config"]["ray_actor_options"] == {"num_cpus": 0}


def test_with_gpus_ray_places_a_worker_on_each():
    config, _ = teacher("build.num_gpus=4", "engine.tensor_parallel_size=4", accelerator_type="H100")
    assert config["engine_kwargs"]["tensor_parallel_size"] == 4
    assert config["engine_kwargs"]["dtype"] == "bfloat16"
    assert not config["engine_kwargs"]["enforce_eager"]
    assert config["placement_group_config"] is None
    assert config["accelerator_type"] == "H100"


def test_prompts_are_not_logged(monkeypatch):
    monkeypatch.setenv("RAYLLM_ENABLE_REQUEST_PROMPT_LOGS", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    config, _ = teacher()
    assert config["engine_kwargs"]["enable_log_requests"] is False
    variables = config["runtime_env"]["env_vars"]
    assert (variables["RAYLLM_ENABLE_REQUEST_PROMPT_LOGS"], variables["VLLM_CPU_KVCACHE_SPACE"]) == ("0", "9")


@pytest.mark.parametrize("kind", ["transformers", "openai"])
def test_only_vllm_can_be_shared(kind):
    with pytest.raises(ModelError, match=r"set engine\.kind=vllm"):
        teacher(f"engine.kind={kind}", "engine.url=http://127.0.0.1/v1")


def test_the_served_name_is_the_models_without_its_place(tmp_path):
    assert served_name("miniature:teacher") == "teacher"
    assert served_name("meta-llama/Llama-3.1-70B-Instruct") == "meta-llama/Llama-3.1-70B-Instruct"
    assert served_name(str(tmp_path)) == tmp_path.name


def test_arguments_come_as_a_command_line_gives_them():
    args = TeacherArgs.model_validate({"overrides": "engine.kind=vllm engine.max_batch=3", "replicas": "2"})
    assert (args.replicas, args.resolve().engine.max_batch) == (2, 3)
