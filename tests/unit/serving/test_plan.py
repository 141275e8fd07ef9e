"""From a config to deployments: who shares an engine, how parts scale, and what a person must mend."""

import asyncio
import json

import pytest
from http_endpoint import ANSWER, KEY, Endpoint, refusal, serving
from pydantic import ValidationError

from steper_ray.config import Config
from steper_ray.config.file import load_config
from steper_ray.core.errors import ModelError, RetrievalError, SteperError
from steper_ray.generation.vllm_settings import lora_arguments
from steper_ray.serving.app import warnings_of
from steper_ray.serving.deployments import IngressReplica, bind
from steper_ray.serving.plan import make_plan, plan_engines

SMALL = {"miniature": {"worlds": 1, "split": "test"}}


def config_of(**fields):
    return Config.model_validate({"corpus": SMALL} | fields)


def test_students_of_the_same_model_share_an_engine_and_keep_their_order(tmp_path):
    students = [
        {"name": "b", "model": "miniature:base"},
        {"name": "t", "model": "miniature:teacher", "replicas": 3},
        {"name": "b2", "model": "miniature:base"},
        {"name": "default"},
    ]
    plan = make_plan(config_of(run_dir=tmp_path, serve={"students": students, "replicas": 2}))
    told = [(e.name, e.engine.model, list(e.students), e.replicas) for e in plan.engines]
    assert told == [
        ("Engine", "miniature:base", ["b", "b2"], 2),
        ("Engine-2", "miniature:teacher", ["t", "default"], 3),
    ]
    assert (plan.about.model, plan.about.models) == ("b", ["b", "t", "b2", "default"])


async def test_an_endpoint_that_answers_nobody_is_named_before_the_service_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with serving(Endpoint()) as endpoint:
        engine = {"kind": "openai", "url": endpoint.url, "model": "tiny", "route": "completions"}
        plan = make_plan(config_of(run_dir=tmp_path, engine=engine))
        endpoint.replies = [(401, refusal("who?")), ANSWER]
        (line,) = await asyncio.to_thread(warnings_of, plan)
        assert line.startswith("warning: ")
        assert "$OPENAI_API_KEY" in line
        assert await asyncio.to_thread(warnings_of, plan) == []
    assert warnings_of(make_plan(config_of(run_dir=tmp_path))) == []


def test_behind_haproxy_where_all_clients_look_like_this_machine_a_token_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.delenv("STEPER_API_TOKEN", raising=False)
    plan = make_plan(config_of(run_dir=tmp_path))
    engines = {"Engine": object()}
    with pytest.raises(SteperError, match="STEPER_API_TOKEN in the environment of the Ray nodes"):
        IngressReplica(engines, plan, guarded=False)
    IngressReplica(engines, plan, guarded=False, local=True)
    monkeypatch.setenv("STEPER_API_TOKEN", "a-token-for-tests")
    IngressReplica(engines, plan, guarded=True)


def test_without_names_the_engines_model_is_the_only_student_and_a_folder_tells_its_last_part(tmp_path):
    folder = tmp_path / "my student (2)"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (folder / name).write_text("{}")
    (engine,) = plan_engines(config_of(engine={"model": str(folder)}))
    assert list(engine.students) == ["my student (2)"]


def test_names_that_come_twice_or_could_not_be_asked_for_are_refused():
    for names, told in ((["a", "a"], "comes twice"), (["a b"], "pattern"), ([""], "at least 1 character")):
        with pytest.raises(ValidationError, match=told):
            config_of(serve={"students": [{"name": name} for name in names]})


def test_an_adapter_is_checked_before_anything_is_deployed(tmp_path):
    def planned(**engine):
        return plan_engines(
            config_of(engine=engine, serve={"students": [{"name": "a", "adapter": str(tmp_path)}]})
        )

    with pytest.raises(ModelError, match=r"engine.kind=transformers serves no LoRA.*train.lora.merge=true"):
        planned()
    with pytest.raises(ModelError, match=r"no adapter_config.json there"):
        planned(kind="vllm")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 12}))
    (engine,) = planned(kind="vllm")
    assert engine.students == {"a": str(tmp_path)}
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_config.json: cannot be read as a LoRA"):
        lora_arguments({"a": str(tmp_path)}, on_cpu=False)


def test_adapters_get_room_for_the_largest_rank_and_on_a_cpu_one_place_more(tmp_path):
    for name, rank in (("a", 4), ("b", 12)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"r": rank}))
    adapters = {name: str(tmp_path / name) for name in "ab"}
    assert lora_arguments(adapters, on_cpu=False) == {
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": 16,
    }
    assert lora_arguments(adapters, on_cpu=True)["max_loras"] == 3
    assert lora_arguments({}, on_cpu=True) == {}


def test_a_lucene_index_is_not_searched_in_parts(tmp_path):
    config = config_of(run_dir=tmp_path, retrieval={"kind": "lucene"}, serve={"retriever": {"shards": 2}})
    with pytest.raises(RetrievalError, match=r"serve.retriever.shards.*more replicas"):
        make_plan(config)


def test_every_part_is_deployed_with_its_own_replicas_and_bounds(tmp_path):
    overrides = [
        f"run_dir={tmp_path}", "corpus.miniature.split=test", "corpus.miniature.worlds=1",
        "serve.replicas=2", "serve.autoscale.max_replicas=5", "serve.autoscale.target_ongoing_requests=7",
        "serve.retriever.shards=2", "serve.retriever.replicas=3", "serve.ingress_replicas=2",
        "serve.max_ongoing_requests=10", "serve.max_queued_requests=20", "serve.request_timeout_s=30",
    ]  # fmt: skip
    ingress = bind(make_plan(load_config(None, overrides)))
    engines = ingress._bound_deployment.init_args[0]
    (engine,) = engines.values()
    shards = engine._bound_deployment.init_args[2]
    scale = engine._bound_deployment._deployment_config.autoscaling_config
    assert (scale.min_replicas, scale.max_replicas, scale.target_ongoing_requests) == (2, 5, 7)
    assert [s._bound_deployment.name for s in shards] == ["Retriever-1", "Retriever-2"]
    assert {s._bound_deployment.num_replicas for s in shards} == {3}
    assert {s._bound_deployment.init_args[1:] for s in shards} == {(0, 2), (1, 2)}
    deployed = [ingress, engine, *shards]
    for one in deployed:  # longer than the longest request
        assert one._bound_deployment._deployment_config.graceful_shutdown_timeout_s > 30
    assert ingress._bound_deployment.max_ongoing_requests >= 5 * 10 + 20
    assert ingress._bound_deployment.num_replicas == 2


def test_an_update_has_the_new_replica_before_the_old_one_goes_wherever_the_config_leaves_room(tmp_path):
    def surges(*overrides):
        world = ["corpus.miniature.split=test", "corpus.miniature.worlds=1", "serve.retriever.shards=2"]
        ingress = bind(make_plan(load_config(None, [f"run_dir={tmp_path}", *world, *overrides])))
        (engine,) = ingress._bound_deployment.init_args[0].values()
        deployed = [ingress, engine, *engine._bound_deployment.init_args[2]]
        return [one._bound_deployment._deployment_config.max_surge_percent for one in deployed]

    assert surges() == [100, 0, 100, 100]
    assert surges("serve.max_surge_percent=50", "serve.retriever.max_surge_percent=0") == [100, 50, 0, 0]
