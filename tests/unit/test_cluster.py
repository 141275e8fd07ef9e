"""Manifests, cluster files and the image: they parse, name only what exists, and agree on versions with the package."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from steper_ray.cluster import check_open_ray, check_run_dir
from steper_ray.config.file import load_config
from steper_ray.core.errors import SteperError, StorageError
from steper_ray.serving.app import ServeArgs

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((ROOT / "cluster" / "kuberay").glob("*.yaml"))
RAY_UP = sorted((ROOT / "cluster" / "ray-up").glob("*.yaml"))
COMMAND = re.compile(r"python (?:/app/)?(\S+\.py) --config (?:/app/)?(\S+\.yaml)")


def documents(path):
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def ray_objects():
    return [d for path in MANIFESTS for d in documents(path) if d["apiVersion"].startswith("ray.io")]


def clusters():
    """The RayCluster spec of every Ray object, wherever its kind keeps it."""
    for item in ray_objects():
        spec = item["spec"]
        yield spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods():
    for spec in clusters():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            yield group["template"]["spec"]


def pinned(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [re.match(rf"{name}(?:\[.*\])?==(\S+)", line) for line in project["dependencies"]]
    return next(match.group(1) for match in found if match)


def test_every_kind_of_ray_object_is_there():
    assert sorted(item["kind"] for item in ray_objects()) == ["RayCluster", "RayJob", "RayJob", "RayService"]
    assert {item["apiVersion"] for item in ray_objects()} == {"ray.io/v1"}


def test_commands_in_manifests_and_readme_name_files_that_exist():
    texts = [*MANIFESTS, *RAY_UP, ROOT / "cluster" / "README.md"]
    commands = [match for path in texts for match in COMMAND.findall(path.read_text(encoding="utf-8"))]
    assert len(commands) >= 6
    missing = {name for command in commands for name in command if not (ROOT / name).is_file()}
    assert missing == set()


def test_a_job_runs_its_own_script_in_the_image_and_ends_its_cluster():
    jobs = {item["metadata"]["name"]: item["spec"] for item in ray_objects() if item["kind"] == "RayJob"}
    scripts = {name: COMMAND.search(spec["entrypoint"]).group(1) for name, spec in jobs.items()}
    assert scripts == {"steper-build": "jobs/build_data.py", "steper-train": "jobs/train.py"}
    for spec in jobs.values():
        # KubeRay puts the entrypoint into a shell command of its own: a second command would run beside the job.
        assert not set(spec["entrypoint"]) & set("&|;")
        assert (spec["submissionMode"], spec["shutdownAfterJobFinishes"]) == ("SidecarMode", True)


def test_the_pods_of_a_job_hold_the_gpus_its_config_asks_for():
    for item in ray_objects():
        if item["kind"] != "RayJob":
            continue
        config = load_config(ROOT / COMMAND.search(item["spec"]["entrypoint"]).group(2))
        (worker,) = item["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert int(limits["nvidia.com/gpu"]) == config.build.num_gpus == config.train.workers
        assert int(limits["cpu"]) >= config.train.workers * config.train.num_cpus


def test_the_service_imports_a_module_that_exists_and_its_config_resolves():
    (service,) = [item["spec"] for item in ray_objects() if item["kind"] == "RayService"]
    (app,) = yaml.safe_load(service["serveConfigV2"])["applications"]
    module, _, builder = app["import_path"].partition(":")
    source = ROOT / Path(*module.split(".")).with_suffix(".py")
    assert f"def {builder}(" in source.read_text(encoding="utf-8")
    config = app["args"]["config"].removeprefix("/app/")
    resolved = load_config(ROOT / config, app["args"]["overrides"])
    assert resolved.engine.model.startswith("/app/runs/")
    assert service["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade"
    assert service["rayClusterConfig"]["enableInTreeAutoscaling"]


def test_the_file_for_serve_deploy_fits_serves_schema_and_its_arguments_resolve(monkeypatch):
    text = (ROOT / "cluster/serve/reasoner.yaml").read_text(encoding="utf-8")
    (app,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    monkeypatch.chdir(ROOT)
    config = ServeArgs(**app.args).resolve()
    assert app.import_path == "steper_ray.serving.app:build"
    assert [student.name for student in config.serve.students] == ["steper"]
    assert (config.serve.replicas, config.serve.autoscale.max_replicas, config.serve.retriever.shards) == (
        2,
        8,
        2,
    )
    assert "token" not in re.sub("#.*", "", text)


def test_clusters_run_the_pinned_ray_with_token_auth_and_autoscaler_v2():
    for spec in clusters():
        assert spec["rayVersion"] == pinned("ray")
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["autoscalerOptions"]["version"] == "v2"


def test_every_pod_runs_the_one_image_without_root_and_mounts_only_its_volumes():
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["image"] == "REGISTRY/steper-ray:0.1.0"
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_no_secret_is_written_down():
    for pod in pods():
        for variable in pod["containers"][0]["env"]:
            assert "value" not in variable, variable["name"]


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_a_ray_up_file_satisfies_rays_schema_and_starts_the_image_with_token_auth(path):
    (config,) = documents(path)
    ray = Path(importlib.util.find_spec("ray").origin).parent
    local = config.pop(
        "min_workers", None
    )  # a field of local clusters that Ray takes out before it validates
    assert (local is not None) == (config["provider"]["type"] == "local")
    jsonschema.validate(
        config, json.loads((ray / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    )
    assert config["docker"]["image"] == "REGISTRY/steper-ray:0.1.0"
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]


def test_the_image_copies_only_what_exists_and_docker_is_given():
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    given = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line[:1] == "!"
    }
    sources = {
        s for line in re.findall(r"^COPY --chown=ray (.+) \S+$", dockerfile, re.M) for s in line.split()
    }
    assert sources == given
    assert {name for name in sources if not (ROOT / name).exists()} == set()
    assert re.search(r"^USER ray$", dockerfile, re.M)


@pytest.mark.parametrize(("is_copy", "nodes"), [(True, 1), (False, 2)])
def test_a_relative_run_dir_is_refused_where_it_is_another_folder_elsewhere_and_its_fix_works(is_copy, nodes):
    with pytest.raises(StorageError, match="give a whole path that every node sees") as caught:
        check_run_dir(Path("runs/mine"), is_copy=is_copy, nodes=nodes)
    fix = Path(str(caught.value).rpartition("run_dir=")[2])
    check_run_dir(fix, is_copy=is_copy, nodes=nodes)
    check_run_dir(Path("runs/mine"), is_copy=False, nodes=1)


def test_a_local_ray_without_its_token_is_refused_and_both_fixes_work(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    check_open_ray()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(SteperError, match=r"Unset it, or where a firewall .* set STEPER_ALLOW_OPEN_RAY=1"):
        check_open_ray()
    monkeypatch.setenv("STEPER_ALLOW_OPEN_RAY", "1")
    check_open_ray()
