"""Manifests for KubeRay 1.6 and later, as documents of `values`: those of cluster/values.yaml."""

from typing import Any

import yaml
from commands import IMAGE, application, command

MOUNTS = ("data", "runs", ".cache")
"""Folders of the image's working folder, /app, that lie on the shared storage."""

Document = dict[str, Any]


def storage(values: Document) -> list[Document]:
    """Data, runs and the model cache, seen by every pod."""
    claim: Document = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": values["storage"]["size"]}},
    }
    if values["storage"]["class"]:
        claim["storageClassName"] = values["storage"]["class"]
    return [_object("v1", "PersistentVolumeClaim", "steper-storage", claim)]


def network(values: Document) -> list[Document]:
    """Which connections pods accept: on every port from this project's pods and KubeRay's operator, on the service's
    port from the pods that `service.callers` selects. Ray's ports ask for the token, but unpickle what they receive."""
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    own = {"matchLabels": {"app.kubernetes.io/part-of": "steper"}}
    service = {"key": "app.kubernetes.io/component", "operator": "In", "values": ["service", "service-head"]}
    port = [{"protocol": "TCP", "port": 8000}]
    policies = {
        "steper": (own, [{"from": [{"podSelector": own}, operator]}]),
        "steper-service": (
            {"matchExpressions": [service]},
            [{"from": values["service"]["callers"], "ports": port}],
        ),
    }
    return [
        _object(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            name,
            {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": ingress},
        )
        for name, (pods, ingress) in policies.items()
    ]


def cluster(values: Document) -> list[Document]:
    """A cluster to keep, and to submit jobs to by hand."""
    workers = [
        _workers(values, "cluster", "cpu", values["cpu_node"], (0, 0, values["max_cpu_nodes"])),
        _workers(values, "cluster", "gpu", values["gpu_node"], (0, 0, values["max_gpu_nodes"])),
    ]
    return [_object("ray.io/v1", "RayCluster", "steper", _ray(values, "cluster", workers, keeps_state=True))]


def job(values: Document, name: str) -> list[Document]:
    """One stage, on a cluster that exists for it."""
    this = values["jobs"][name]
    counts = (this["nodes"], this["nodes"], this["max_nodes"])
    spec = {
        # The submitter is a container in the head pod: it needs no way through the network, and ends with the cluster.
        "submissionMode": "SidecarMode",
        "entrypoint": command(values, name, IMAGE),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,  # time to look at the dashboard
        "activeDeadlineSeconds": this["hours"] * 3600,
        "backoffLimit": 1,  # a second cluster, if the first is lost; it continues what is committed under run_dir
        "rayClusterSpec": _ray(values, name, [_workers(values, name, "gpu", values["gpu_node"], counts)]),
    }
    return [_object("ray.io/v1", "RayJob", f"steper-{name}", spec)]


def service(values: Document) -> list[Document]:
    """The student as a service, and how much of it a drain of nodes may take at a time."""
    this = values["service"]
    upgrade: Document = {"type": "NewCluster"}
    if this["gateway"]:
        upgrade = {
            "type": "NewClusterWithIncrementalUpgrade",
            # Half of the replicas at a time: never more than half again as many GPUs, and half the traffic with them.
            "clusterUpgradeOptions": {
                "gatewayClassName": this["gateway"],
                "maxSurgePercent": 50,
                "stepSizePercent": 50,
                "intervalSeconds": 60,
            },
        }
    counts = (this["replicas"], 1, this["max_replicas"])
    replicas = _workers(values, "service", "replica", this["node"], counts, this["secret"])
    ray = _ray(values, "service", [replicas], keeps_state=True, secret=this["secret"])
    ray["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"].append(
        {"name": "serve", "containerPort": 8000}
    )
    spec = {
        "upgradeStrategy": upgrade,
        "serveConfigV2": yaml.safe_dump({"applications": [application(values, IMAGE)]}, sort_keys=False),
        "rayClusterConfig": ray,
    }
    budget = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": {"app.kubernetes.io/component": "service"}},
    }
    return [
        _object("ray.io/v1", "RayService", "steper", spec),
        _object("policy/v1", "PodDisruptionBudget", "steper-service", budget),
    ]


def _object(version: str, kind: str, name: str, spec: Document) -> Document:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _ray(
    values: Document,
    component: str,
    workers: list[Document],
    keeps_state: bool = False,
    secret: str | None = None,
) -> Document:
    head = _pod(values, f"{component}-head", values["head"], secret)
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
    head["spec"]["containers"][0]["ports"] = [
        {"name": name, "containerPort": port} for name, port in ports.items()
    ]
    spec: Document = {
        "rayVersion": values["ray"],
        "authOptions": {"mode": "token"},  # KubeRay makes the token's Secret and hands it to every pod
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": values["idle_minutes"] * 60},
        # No work on the head: a task that takes its memory takes the cluster down.
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head},
        "workerGroupSpecs": workers,
    }
    if keeps_state and values["redis"]:
        password = {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
        spec["gcsFaultToleranceOptions"] = {"redisAddress": values["redis"], "redisPassword": password}
    return spec


def _workers(
    values: Document,
    component: str,
    name: str,
    node: Document,
    counts: tuple[int, int, int],
    secret: str | None = None,
) -> Document:
    template = _pod(values, component, node, secret)
    template["spec"]["automountServiceAccountToken"] = (
        False  # the head's autoscaler needs it, and no one else
    )
    now, least, most = counts
    return {
        "groupName": name,
        "replicas": now,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": template,
    }


def _pod(values: Document, component: str, node: Document, secret: str | None) -> Document:
    """A Ray node that cannot write its image: only the storage, /tmp and its home. KubeRay adds the probes."""
    resources = {"cpu": str(node["cpu"]), "memory": node["memory"]}
    mounts = [{"name": "storage", "mountPath": f"/app/{name}", "subPath": name.strip(".")} for name in MOUNTS]
    mounts += [
        {"name": "scratch", "mountPath": "/tmp", "subPath": "tmp"},
        {"name": "scratch", "mountPath": "/home/ray", "subPath": "home"},
    ]
    volumes: list[Document] = [
        {"name": "storage", "persistentVolumeClaim": {"claimName": "steper-storage"}},
        {"name": "scratch", "emptyDir": {}},
    ]
    tolerations = []
    if node.get("gpus"):
        resources["nvidia.com/gpu"] = str(node["gpus"])
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # NCCL and vLLM pass tensors through it
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}})
        tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    env = [_secret("HF_TOKEN", values["huggingface_secret"], optional=True)]
    if secret:
        env.append(_secret("STEPER_API_TOKEN", secret, optional=False))
    container = {
        "name": "ray",
        "image": values["image"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"limits": resources, "requests": dict(resources)},
        "env": env,
        "volumeMounts": mounts,
    }
    user = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000}
    labels = {"app.kubernetes.io/part-of": "steper", "app.kubernetes.io/component": component}
    spec = {
        "securityContext": user | {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": volumes,
        "tolerations": tolerations,
    }
    return {"metadata": {"labels": labels}, "spec": spec}


def _secret(variable: str, name: str, optional: bool) -> Document:
    return {
        "name": variable,
        "valueFrom": {"secretKeyRef": {"name": name, "key": "token", "optional": optional}},
    }
