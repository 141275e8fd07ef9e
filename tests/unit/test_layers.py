"""Who may import whom: each room only those below it, Ray only where it is used."""

import ast
from pathlib import Path

import pytest

import steper_ray

ROOT = Path(steper_ray.__file__).parent
#: Each room with the rooms it may import besides itself. A later room may import what its own rooms import.
MAY = {
    "core": {"schema"},
    "schema": set(),
    "config": {"core", "schema"},
    "corpora": {"core", "schema", "config"},
    "frameworks": {"core", "schema", "config"},
    "prompts": {"core", "schema", "config", "frameworks"},
    "models": {"core", "config"},
    "pretrained": {"core"},
    "cluster": {"core"},
    "retrieval": {"core", "schema", "config", "models", "pretrained"},
    "generation": {"core", "schema", "config", "models", "pretrained"},
    "reasoning": {"core", "schema", "config", "frameworks", "prompts", "retrieval", "generation"},
}
BASE = set(MAY)
MAY |= {
    "rollouts": BASE,
    "data": BASE | {"rollouts"},
    "evaluation": BASE | {"rollouts"},
    "serving": BASE,
    "client": {"core", "schema", "config", "generation", "serving"},
    "training": {"core", "schema", "config", "prompts", "frameworks", "models", "pretrained", "cluster"},
}
ABOVE = {"stages", "recipes", "experiments", "cli", "miniature", "__init__"}
#: Where Ray may be imported.
RAY = {
    "cluster.py", "core/tasks.py", "rollouts/run.py", "training/trainer.py", "training/worker.py",
    "serving/app.py", "serving/args.py", "serving/deployments.py", "serving/handles.py", "serving/metrics.py",
    "serving/teacher.py",
}  # fmt: skip


def imports(file):
    """The modules that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "steper_ray" and len(parts) > 1 else None


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("room", sorted(MAY))
def test_a_room_imports_only_rooms_below_it(room):
    files = [file for file in FILES if file.relative_to(ROOT).parts[0] in (room, f"{room}.py")]
    assert files
    rooms = {
        (str(file.relative_to(ROOT)), found)
        for file in files
        for module in imports(file)
        if (found := room_of(module)) in MAY.keys() | ABOVE
    }
    assert {(file, found) for file, found in rooms if found not in MAY[room] | {room}} == set()


def test_ray_is_imported_only_where_it_is_used():
    found = {
        str(file.relative_to(ROOT))
        for file in FILES
        if any(module.split(".")[0] == "ray" for module in imports(file))
    }
    assert found <= RAY
