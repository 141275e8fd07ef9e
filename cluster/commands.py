"""What runs on a cluster, wherever it is: the command of each job, and the service's application."""

import posixpath
import shlex
from typing import Any

IMAGE = "/app"
"""The image's working folder, which holds the code; paths of a config are relative to it."""


def command(values: dict[str, Any], name: str, code: str) -> str:
    """The command of job `name`, of code that lies in the folder `code`."""
    job = values["jobs"][name]
    script = f"{code}/jobs/{job['script']}.py"
    place = [f"run_dir={values['run_dir']}"]
    return shlex.join(["python", script, "--config", _config(values, code), *place, *_options(values, job)])


def application(values: dict[str, Any], code: str) -> dict[str, Any]:
    """The service, as Ray Serve's config files describe it."""
    service = values["service"]
    arguments = {
        "config": _config(values, code),
        "run_dir": values["run_dir"],
        "overrides": [*_options(values, service), f"serve.replicas={service['replicas']}"],
    }
    builder = "steper_ray.serving.app:build"
    return {"name": "steper", "import_path": builder, "route_prefix": "/", "args": arguments}


def _config(values: dict[str, Any], code: str) -> str:
    return values["config"] if "://" in values["config"] else posixpath.join(code, values["config"])


def _options(values: dict[str, Any], section: dict[str, Any]) -> list[str]:
    return [option.replace("RUN_DIR", values["run_dir"]) for option in section["options"]]
