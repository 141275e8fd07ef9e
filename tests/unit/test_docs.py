"""What the documents say exists: commands, options, settings, links and files."""

import re
import shlex
from itertools import chain
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from steper_ray.cli.main import app
from steper_ray.config import Config
from steper_ray.config.file import load_config

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {page.relative_to(ROOT): page.read_text(encoding="utf-8") for page in PAGES}
SECTIONS = set(Config.model_fields) - {"run_dir"}


def fenced(language):
    """(page, text) of each fenced block of a language."""
    found = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page, block) for page, text in TEXTS.items() for block in found.findall(text)]


def command_lines():
    """Each `steper ...` line of the fenced blocks, continued lines joined."""
    for page, block in fenced(""):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\S*/)?steper ", line):
                yield page, shlex.split(line, comments=True)[1:]


def exists(field):
    """Whether a dotted name is a setting."""
    model, *rest = Config, *field.split(".")
    for part in rest:
        fields = getattr(model, "model_fields", None)
        if fields is None or part not in fields:
            return False
        annotation = fields[part].annotation
        choices = [annotation, *getattr(annotation, "__args__", ())]
        model = next((one for one in choices if hasattr(one, "model_fields")), None)
    return True


def test_the_readme_is_short():
    assert len(TEXTS[Path("README.md")].splitlines()) <= 150


def test_every_command_and_option_exists():
    commands = get_command(app).commands
    lines = list(command_lines())
    assert len(lines) > 15
    for page, (name, *words) in lines:
        assert name in commands, f"{page}: steper {name}"
        known = set(chain.from_iterable(parameter.opts for parameter in commands[name].params))
        assert {word for word in words if word.startswith("--")} <= known, f"{page}: steper {name} {words}"


def test_every_setting_exists():
    pattern = re.compile(rf"\b((?:{'|'.join(SECTIONS)})\.[a-z][a-z_.]*[a-z])(?=[=`\s,;)\]])")
    names = {(page, name) for page, text in TEXTS.items() for name in pattern.findall(text)}
    names -= {name for name in names if name[0].name == "reference.md"}  # modules
    wrong = [
        f"{page}: {name}"
        for page, name in names
        if not exists(name) and not name.endswith((".md", ".py", ".yaml"))
    ]
    assert len(names) > 40
    assert wrong == []


@pytest.mark.parametrize("page", TEXTS, ids=str)
def test_every_link_and_named_file_exists(page):
    text, folder = TEXTS[page], ROOT / page.parent
    links = [link for link in re.findall(r"\]\(([^)\s#]+)", text) if "://" not in link]
    assert [link for link in links if not (folder / link).exists()] == []
    named = re.findall(r"`((?:docs|examples|jobs|cluster|benchmarks|steper_ray)/[\w./-]+\.\w+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_config_in_the_documents_loads(tmp_path):
    blocks = [
        (page, text) for page, text in fenced("yaml") if set(yaml.safe_load(text)) & set(Config.model_fields)
    ]
    assert len(blocks) >= 3
    for number, (_, text) in enumerate(blocks):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        load_config(file, [])


def test_every_test_that_a_page_names_exists():
    named = set(re.findall(r"`(tests/\S+\.py)::(\w+)`", "".join(TEXTS.values())))
    assert len(named) > 20
    missing = [
        name for file, name in named if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []
