"""Clusters without Kubernetes, as `values` of cluster/values.yaml describe them: `ray up`, Slurm, a Ray of your own."""

from typing import Any

from commands import IMAGE, application, command

Document = dict[str, Any]


def aws(values: Document) -> list[Document]:
    """EC2: a small head, GPU nodes that come when a job asks for them and go when they are idle; data on EFS."""
    this = values["aws"]

    def node(kind: str, gigabytes: int) -> Document:
        disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": gigabytes, "VolumeType": "gp3"}}
        return {"InstanceType": kind, "ImageId": this["image"], "BlockDeviceMappings": [disk]}

    provider = {"type": "aws", "region": this["region"], "cache_stopped_nodes": False}  # their disks cost
    share = f"-t nfs4 -o nfsvers=4.1 {this['efs']}.efs.{this['region']}.amazonaws.com:/"
    nodes = {
        "head": {"resources": {"CPU": 0}, "node_config": node(this["head"], 200)},
        "gpu": {
            "min_workers": 0,
            "max_workers": values["max_gpu_nodes"],
            "resources": {},  # Ray knows the instance types
            "node_config": node(this["node"], 500),
        },
    }
    return [_cloud(values, provider, nodes, share, "boto3")]


def gcp(values: Document) -> list[Document]:
    """Compute Engine, likewise; data on Filestore."""
    this = values["gcp"]
    start = {"diskSizeGb": 200, "sourceImage": this["image"]}
    disk = {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": start}
    provider = {
        "type": "gcp",
        "region": this["region"],
        "availability_zone": this["zone"],
        "project_id": this["project"],
    }
    nodes = {
        "head": {"resources": {"CPU": 0}, "node_config": {"machineType": this["head"], "disks": [disk]}},
        "gpu": {
            "min_workers": 0,
            "max_workers": values["max_gpu_nodes"],
            "resources": {"CPU": values["gpu_node"]["cpu"], "GPU": values["gpu_node"]["gpus"]},
            "node_config": {
                "machineType": this["node"],
                "disks": [disk],
                "scheduling": [
                    {"onHostMaintenance": "TERMINATE"}
                ],  # a machine with GPUs cannot be moved as it runs
            },
        },
    }
    return [_cloud(values, provider, nodes, this["filestore"], "google-api-python-client")]


def own(values: Document) -> list[Document]:
    """Machines of your own, reached by ssh, each with Docker; every one sees the same folder."""
    this = values["own"]
    workers = this["workers"]
    machines = {
        "provider": {"type": "local", "head_ip": this["head"], "worker_ips": workers},
        "auth": {"ssh_user": this["user"]},
        "min_workers": len(workers),
        "max_workers": len(workers),
    }
    docker = _docker(values, this["folder"])
    docker |= {"pull_before_run": True, "run_options": ["--gpus=all", *docker["run_options"]]}
    return [{"cluster_name": "steper", **machines, "docker": docker, **_starts("")}]


def serve(values: Document) -> list[Document]:
    """The service for `serve deploy` on a Ray that runs. Its nodes have STEPER_API_TOKEN in their environment."""
    http = {"host": values["service"]["host"], "port": 8000}
    return [
        {"proxy_location": "EveryNode", "http_options": http, "applications": [application(values, IMAGE)]}
    ]


def slurm(values: Document, name: str) -> str:
    """A script for `sbatch`: one Ray over the nodes of the job, which ends with it. Submitted again, it continues."""
    this, job = values["slurm"], values["jobs"][name]
    return f"""#!/bin/bash
#SBATCH --job-name=steper-{name}
#SBATCH --partition={this["partition"]}
#SBATCH --nodes={job["nodes"]}
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node={values["gpu_node"]["gpus"]}
#SBATCH --time={job["hours"]}:00:00
#SBATCH --signal=TERM@120
set -euo pipefail
cd {this["checkout"]}
export PATH=$PWD/.venv/bin:$PATH RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))') && export RAY_AUTH_TOKEN
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
srun --kill-on-bad-exit ray symmetric-run --address "$head:{this["port"]}" --min-nodes "$SLURM_NNODES" -- \\
  {command(values, name, this["checkout"])}
"""


def _cloud(values: Document, provider: Document, nodes: Document, share: str, client: str) -> Document:
    """A cluster that grows and shrinks; `client` is the library by which its head asks for nodes."""
    folder = "/mnt/steper"
    folders = " ".join(f"{folder}/{name}" for name in ("data", "runs", "cache"))
    return {
        "cluster_name": "steper",
        "max_workers": values["max_gpu_nodes"],
        "idle_timeout_minutes": values["idle_minutes"],
        "provider": provider,
        "auth": {"ssh_user": "ubuntu"},
        "docker": _docker(values, folder),
        "head_node_type": "head",
        "available_node_types": nodes,
        "initialization_commands": [
            f"sudo mkdir -p {folder} && (mountpoint -q {folder} || sudo mount {share} {folder})",
            f"sudo install -d -o 1000 -g 1000 {folders}",
        ],
        "head_setup_commands": [f"python -m pip install {client}"],
        **_starts("--object-manager-port=8076"),
    }


def _docker(values: Document, folder: str) -> Document:
    mounts = [f"-v {folder}/{name.strip('.')}:{IMAGE}/{name}" for name in ("data", "runs", ".cache")]
    options = ["-e RAY_AUTH_MODE=token", "--shm-size=32g"]  # NCCL and vLLM pass tensors through /dev/shm
    return {"image": values["image"], "container_name": "steper", "run_options": options + mounts}


def _starts(port: str) -> Document:
    """How Ray starts, with one token for all nodes: `ray get-auth-token --generate` makes it, before `ray up`."""
    head = f"--head --port=6379 {port} --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml"
    worker = f"--address=$RAY_HEAD_IP:6379 {port}"
    return {
        "file_mounts": {"/home/ray/.ray/auth_token": "~/.ray/auth_token"},
        "head_start_ray_commands": ["ray stop", f"ulimit -n 65536; ray start {head}"],
        "worker_start_ray_commands": ["ray stop", f"ulimit -n 65536; ray start {worker}".rstrip()],
    }
