"""What cluster/ makes: valid objects of Kubernetes, KubeRay and Ray, which name only what exists."""

import importlib.util
import json
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import kuberay_schema
import kubernetes_validate
import manifests
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from steper_ray.cluster import check_address, check_open_ray, check_run_dir
from steper_ray.config.file import load_config
from steper_ray.core.errors import SteperError, StorageError
from steper_ray.serving.app import ServeArgs

ROOT = Path(__file__).parents[2]
KUBERNETES = ["storage", "network", "cluster", "build", "train", "evaluate", "service"]
JOBS = ["build", "train", "evaluate"]
COMMAND = re.compile(r"python (?:/app/)?(\S+\.py) --config (?:/app/)?(\S+\.yaml)")


def rendered(*names, **changes):
    overrides = [f"{name.replace('__', '.')}={json.dumps(value)}" for name, value in changes.items()]
    return list(yaml.safe_load_all(manifests.render(list(names), manifests.read_values(overrides=overrides))))


def ray_objects():
    return [item for item in rendered(*KUBERNETES) if item["apiVersion"].startswith("ray.io")]


def pods():
    return [template["spec"] for item in ray_objects() for template in kuberay_schema.pod_templates(item)]


def pinned(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [re.match(rf"{name}(?:\[.*\])?==(\S+)", line) for line in project["dependencies"]]
    return next(match.group(1) for match in found if match)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"redis": "redis:6379", "service__gateway": "", "storage__class": "nfs"},
        {"gpu_node__gpus": 0, "service__node": {"cpu": 4, "memory": "8Gi", "gpus": 0}},
    ],
    ids=["as it is", "a Redis, no gateway, a storage class", "no GPUs"],
)
def test_every_object_fits_the_schemas_of_kubernetes_and_kuberay(changes):
    items = rendered(*KUBERNETES, **changes)
    assert [item["kind"] for item in items] == [
        "PersistentVolumeClaim",
        *["NetworkPolicy"] * 2,
        "RayCluster",
        *["RayJob"] * 3,
        "RayService",
        "PodDisruptionBudget",
    ]
    for item in items:
        kuberay_schema.check(item)


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("rayClusterConfig.headGroupSpec", "rayStartParam", {}),
        ("rayClusterConfig", "rayVersion", 2.6),
        ("rayClusterConfig.headGroupSpec.template.spec", "securityContexts", {}),
        ("rayClusterConfig.headGroupSpec.template.spec.securityContext", "runAsUser", "ray"),
    ],
)
def test_the_schemas_refuse_a_field_that_is_misspelt_or_of_another_type(where, name, value):
    (service, _) = rendered("service")
    inner = service["spec"]
    for part in where.split("."):
        inner = inner[part]
    inner[name] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        kuberay_schema.check(service)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["biuld"], "nothing is called `biuld`. There are: storage, network, cluster, service, serve, aws"),
        (["build", "job.build.nodes=2"], "job.build.nodes=2: no value is called `job`. Near it: jobs"),
        (["build", "jobs.build.node=2"], "no value is called `jobs.build.node`. Near it: nodes"),
        (["build", "storage=2"], "storage=2: `storage` has parts: set size, class in it"),
        (["build", "slurm-build"], "`slurm-build` is a script: ask for it alone"),
        (["build", "--values", "nowhere.yaml"], "No such file or directory: 'nowhere.yaml'"),
    ],
)
def test_a_wrong_name_or_value_ends_in_one_line_that_names_it_and_what_is_near(words, message):
    command = [sys.executable, ROOT / "cluster" / "manifests.py", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_values_of_a_file_go_before_the_projects_and_those_of_the_call_before_both(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("image: mine:1\nhead: {cpu: 8}\nidle_minutes: 1\n")
    values = manifests.read_values(mine, ["idle_minutes=2", "storage.size=5Gi"])
    theirs = manifests.read_values()
    assert values["head"] == {"cpu": 8, "memory": theirs["head"]["memory"]}
    assert (values["image"], values["idle_minutes"], values["storage"]["size"]) == ("mine:1", 2, "5Gi")


def test_commands_of_jobs_and_readme_name_files_that_exist():
    texts = [(ROOT / "cluster" / "README.md").read_text(encoding="utf-8")]
    texts += [item["spec"]["entrypoint"] for item in rendered(*JOBS)]
    commands = [match for text in texts for match in COMMAND.findall(text)]
    assert len(commands) >= 6
    missing = {name for command in commands for name in command if not (ROOT / name).is_file()}
    assert missing == set()


def test_a_job_runs_its_own_script_in_the_image_and_ends_its_cluster():
    specs = {item["metadata"]["name"]: item["spec"] for item in rendered(*JOBS)}
    scripts = {name: COMMAND.search(spec["entrypoint"]).group(1) for name, spec in specs.items()}
    assert scripts == {
        "steper-build": "jobs/build_data.py",
        "steper-train": "jobs/train.py",
        "steper-evaluate": "jobs/evaluate.py",
    }
    for spec in specs.values():
        # KubeRay puts the entrypoint into a shell command of its own: a second command would run beside the job.
        assert not set(spec["entrypoint"]) & set("&|;")
        assert (spec["submissionMode"], spec["shutdownAfterJobFinishes"]) == ("SidecarMode", True)


def test_the_pods_of_a_job_hold_the_gpus_its_config_asks_for():
    for item in rendered(*JOBS):
        entrypoint = item["spec"]["entrypoint"].split()
        config = load_config(ROOT / COMMAND.search(item["spec"]["entrypoint"]).group(2), entrypoint[4:])
        (worker,) = item["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
        evaluate = config.evaluate
        assert int(limits["nvidia.com/gpu"]) == config.build.num_gpus == config.train.workers
        assert int(limits["nvidia.com/gpu"]) >= evaluate.engines * evaluate.num_gpus
        assert int(limits["cpu"]) >= max(
            config.train.workers * config.train.num_cpus, evaluate.engines * evaluate.num_cpus
        )


def test_the_service_imports_a_module_that_exists_and_its_config_resolves(monkeypatch):
    ((service, _), (deploy,)) = rendered("service"), rendered("serve")
    applications = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert applications == deploy["applications"]
    (app,) = ServeDeploySchema.model_validate(deploy).applications
    module, _, builder = app.import_path.partition(":")
    source = ROOT / Path(*module.split(".")).with_suffix(".py")
    assert f"def {builder}(" in source.read_text(encoding="utf-8")
    monkeypatch.chdir(ROOT)
    config = ServeArgs(**app.args | {"config": app.args["config"].removeprefix("/app/")}).resolve()
    assert (config.engine.model, config.serve.replicas) == ("/app/runs/paper_hotpotqa/models/steper", 2)
    assert service["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"]


def test_clusters_run_the_pinned_ray_with_token_auth_and_autoscaler_v2():
    for item in ray_objects():
        spec = kuberay_schema.ray_cluster(item)
        assert spec["rayVersion"] == pinned("ray")
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["autoscalerOptions"]["version"] == "v2"


def test_every_pod_runs_the_one_image_without_root_and_writes_only_to_its_volumes():
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["image"] == "REGISTRY/steper-ray:0.1.0"
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert {"/tmp", "/home/ray"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


def test_no_secret_is_written_down():
    for pod in pods():
        for variable in pod["containers"][0]["env"]:
            assert "value" not in variable, variable["name"]
    (deploy,) = rendered("serve")
    assert "token" not in str(deploy).lower()


def test_the_policies_and_the_budget_select_pods_that_there_are():
    labels = [
        template["metadata"]["labels"]
        for item in ray_objects()
        for template in kuberay_schema.pod_templates(item)
    ]
    parts = {label["app.kubernetes.io/component"] for label in labels}
    assert {label["app.kubernetes.io/part-of"] for label in labels} == {"steper"}
    (everyone, callers) = rendered("network")
    (selected,) = callers["spec"]["podSelector"]["matchExpressions"]
    assert everyone["spec"]["podSelector"] == {"matchLabels": {"app.kubernetes.io/part-of": "steper"}}
    assert set(selected["values"]) <= parts
    assert rendered("service")[1]["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] in parts


@pytest.mark.parametrize("name", ["aws", "gcp", "own"])
def test_a_ray_up_file_satisfies_rays_schema_and_starts_the_image_with_token_auth(name):
    (config,) = rendered(name)
    ray = Path(importlib.util.find_spec("ray").origin).parent
    # A field of local clusters that Ray takes out before it validates.
    local = config.pop("min_workers", None)
    assert (local is not None) == (config["provider"]["type"] == "local")
    jsonschema.validate(
        config, json.loads((ray / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    )
    assert config["docker"]["image"] == "REGISTRY/steper-ray:0.1.0"
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]


@pytest.mark.parametrize("job", JOBS)
def test_a_script_for_slurm_is_one_that_bash_reads_and_runs_the_job_of_the_checkout(job):
    values = manifests.read_values(
        overrides=["slurm.checkout=/home/me/steper", "run_dir=/shared/run", "slurm.port=7"]
    )
    script = manifests.render([f"slurm-{job}"], values)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert f"#SBATCH --nodes={values['jobs'][job]['nodes']}\n" in script
    command = script.splitlines()[-1].split()
    assert command[:2] == ["python", f"/home/me/steper/jobs/{values['jobs'][job]['script']}.py"]
    assert command[3:5] == ["/home/me/steper/jobs/configs/paper_hotpotqa.yaml", "run_dir=/shared/run"]
    assert '--address "$head:7" --min-nodes "$SLURM_NNODES" --' in script


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


def test_an_address_at_which_no_ray_answers_is_named_at_once():
    with socket.socket() as bound:  # nothing listens there, and nothing else can begin to
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(
            SteperError, match=rf"RAY_ADDRESS={address}: no Ray answers there .*unset RAY_ADDRESS"
        ):
            check_address(address)
        bound.listen()
        check_address(address)
