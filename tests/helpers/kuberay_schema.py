"""The fields of KubeRay's custom resources (v1.6.2's reference) that manifests may use, as JSON Schema.

Pod templates are left to Kubernetes's own schema, and so are objects of other kinds.
"""

from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.37"
Schema = dict[str, Any]


def closed(required: Schema, **optional: Any) -> Schema:
    fields = {**required, **optional}
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 50}
COUNT: Schema = {"type": "integer", "minimum": 0}
PERCENT: Schema = {"type": "integer", "minimum": 0, "maximum": 100}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
OBJECT: Schema = {"type": "object"}

GROUP = {"rayStartParams": TEXTS, "template": OBJECT}
CREDENTIAL = closed({}, value=TEXT, valueFrom=OBJECT)
CLUSTER = closed(
    {"headGroupSpec": closed(GROUP, serviceType=TEXT, headService=OBJECT, enableIngress=FLAG)},
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            {"groupName": NAME, "maxReplicas": COUNT, "minReplicas": COUNT, **GROUP},
            replicas=COUNT,
            numOfHosts=COUNT,
            idleTimeoutSeconds=COUNT,
        ),
    },
    rayVersion=TEXT,
    authOptions=closed({}, mode=one_of("disabled", "token"), secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed(
        {},
        version=one_of("v1", "v2"),
        idleTimeoutSeconds=COUNT,
        resources=OBJECT,
        securityContext=OBJECT,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    ),
    gcsFaultToleranceOptions=closed(
        {},
        redisAddress=TEXT,
        redisUsername=CREDENTIAL,
        redisPassword=CREDENTIAL,
        externalStorageNamespace=TEXT,
    ),
)
KINDS = {
    "RayCluster": CLUSTER,
    "RayJob": closed(
        {"rayClusterSpec": CLUSTER, "entrypoint": TEXT},
        submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        activeDeadlineSeconds={"type": "integer", "exclusiveMinimum": 0},
        backoffLimit=COUNT,
        runtimeEnvYAML=TEXT,
    ),
    "RayService": closed(
        {"rayClusterConfig": CLUSTER, "serveConfigV2": TEXT},
        upgradeStrategy=closed(
            {"type": one_of("NewClusterWithIncrementalUpgrade", "NewCluster", "None")},
            clusterUpgradeOptions=closed(
                {"gatewayClassName": TEXT, "stepSizePercent": PERCENT, "intervalSeconds": COUNT},
                maxSurgePercent=PERCENT,
            ),
        ),
        excludeHeadPodFromServeSvc=FLAG,
    ),
}


def ray_cluster(item: Schema) -> Schema:
    """The RayCluster spec of an object of KubeRay, wherever its kind keeps it."""
    spec = item["spec"]
    cluster: Schema = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return cluster


def pod_templates(item: Schema) -> list[Schema]:
    cluster = ray_cluster(item)
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def check(item: Schema) -> None:
    """Raises ValidationError of jsonschema or kubernetes_validate where `item` is no valid object."""
    if item["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
        return
    jsonschema.validate(
        item,
        closed(
            {
                "apiVersion": TEXT,
                "kind": one_of(*KINDS),
                "metadata": closed({"name": NAME}),
                "spec": KINDS[item["kind"]],
            }
        ),
    )
    for template in pod_templates(item):
        wrapped = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": "any"},
            "template": template,
        }
        kubernetes_validate.validate(wrapped, KUBERNETES, strict=True)
