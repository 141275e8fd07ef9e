"""Prints what a cluster is made of, with the values of cluster/values.yaml: manifests for KubeRay, `ray up` and Slurm.

python cluster/manifests.py storage network build | kubectl apply -f -
python cluster/manifests.py aws --values mine.yaml > aws.yaml && ray up aws.yaml
python cluster/manifests.py slurm-train slurm.partition=a100 | sbatch

What `--values` gives goes before cluster/values.yaml, and `name=value` before both. Needs PyYAML alone.
"""

import argparse
import difflib
import sys
from pathlib import Path
from typing import Any

import kuberay
import machines
import yaml

VALUES = Path(__file__).parent / "values.yaml"
PARTS = {
    "storage": kuberay.storage,
    "network": kuberay.network,
    "cluster": kuberay.cluster,
    "service": kuberay.service,
    "serve": machines.serve,
    "aws": machines.aws,
    "gcp": machines.gcp,
    "own": machines.own,
}


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice twice, without anchors, and texts of many lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Plain.add_representer(str, _Plain.represent_str)


def read_values(file: Path | None = None, overrides: list[str] | None = None) -> dict[str, Any]:
    """cluster/values.yaml with what `file` and then `overrides` (name=value) change. ValueError: a name it has not."""
    values: dict[str, Any] = yaml.safe_load(VALUES.read_text(encoding="utf-8"))
    if file is not None:
        _merge(values, yaml.safe_load(file.read_text(encoding="utf-8")) or {}, str(file))
    for override in overrides or []:
        path, _, text = override.partition("=")
        changes: Any = yaml.safe_load(text)
        for name in reversed(path.split(".")):
            changes = {name: changes}
        _merge(values, changes, override)
    return values


def render(names: list[str], values: dict[str, Any]) -> str:
    """What `names` name, one YAML document after another, or one script. ValueError: nothing has this name."""
    known = [*PARTS, *values["jobs"], *(f"slurm-{job}" for job in values["jobs"])]
    documents: list[dict[str, Any]] = []
    for name in names:
        if name not in known:
            raise ValueError(f"nothing is called `{name}`. There are: {', '.join(known)}")
        if name.startswith("slurm-"):
            if len(names) > 1:
                raise ValueError(f"`{name}` is a script: ask for it alone")
            return machines.slurm(values, name.removeprefix("slurm-"))
        documents += PARTS[name](values) if name in PARTS else kuberay.job(values, name)
    return str(yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=1000))


def _merge(values: dict[str, Any], changes: Any, source: str, above: str = "") -> None:
    if not isinstance(changes, dict):
        raise ValueError(f"{source}: `{above.rstrip('.')}` has parts: set {', '.join(values)} in it")
    for name, value in changes.items():
        if name not in values:
            near = difflib.get_close_matches(str(name), values, n=1) or [", ".join(values)]
            raise ValueError(f"{source}: no value is called `{above}{name}`. Near it: {near[0]}")
        if isinstance(values[name], dict):
            _merge(values[name], value, source, f"{above}{name}.")
        else:
            values[name] = value


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="NAME", help="what to print, and name=value for a value")
    parser.add_argument("--values", type=Path, help="a file with values of your own")
    given = parser.parse_args()
    names = [word for word in given.words if "=" not in word]
    try:
        values = read_values(given.values, [word for word in given.words if "=" in word])
        sys.stdout.write(render(names, values))
    except (ValueError, OSError, yaml.YAMLError) as error:
        sys.exit(f"manifests: {error}")


if __name__ == "__main__":
    main()
