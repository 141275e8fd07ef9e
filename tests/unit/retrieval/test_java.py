"""The search for a fitting Java, on stand-ins that answer `--list-modules` as a real one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from steper_ray.core.errors import RetrievalError
from steper_ray.retrieval import java


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any Java: its `jvm` folder is the only one that is looked into."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    monkeypatch.setattr(java, "_FOLDERS", (str(tmp_path / "jvm" / "*"),))
    (tmp_path / "jvm").mkdir()
    return tmp_path


def install(home: Path, version: int, *, vector: bool = True, library: bool = True) -> Path:
    (home / "bin").mkdir(parents=True)
    modules = [f"java.base@{version}.0.3", *([f"jdk.incubator.vector@{version}.0.3"] if vector else [])]
    (home / "bin" / "java").write_text("#!/bin/sh\n" + "".join(f"echo {module}\n" for module in modules))
    (home / "bin" / "java").chmod(0o755)
    if library:
        (home / "lib" / "server").mkdir(parents=True)
        (home / "lib" / "server" / "libjvm.so").touch()
    return home


def search() -> java.Java:
    return java.find_java.__wrapped__()


def test_a_fitting_java_is_found_among_others(machine: Path) -> None:
    install(machine / "jvm" / "z17", 17)
    install(machine / "jvm" / "y25-jre", 25, vector=False)
    home = install(machine / "jvm" / "x21", 21)
    assert search() == java.Java(home, home / "lib" / "server" / "libjvm.so")


def test_java_home_comes_first_and_an_unfit_one_is_passed_over(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = install(machine / "jvm" / "x21", 21)
    mine = install(machine / "mine", 25)
    monkeypatch.setenv("JAVA_HOME", str(mine))
    assert search().home == mine
    monkeypatch.setenv("JAVA_HOME", str(install(machine / "old", 8)))
    assert search().home == home


def test_the_java_of_the_path_is_followed_to_its_home(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = install(machine / "mine", 25)
    (machine / "link").symlink_to(home / "bin" / "java")
    monkeypatch.setattr(java.shutil, "which", lambda name: str(machine / "link"))
    assert search().home == home


def test_without_a_fitting_java_the_error_says_what_each_lacks_and_how_to_add_one(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(machine / "jvm" / "old", 17)
    install(machine / "jvm" / "jre", 25, vector=False)
    install(machine / "jvm" / "bare", 25, library=False)
    broken = install(machine / "jvm" / "broken", 25)
    (broken / "bin" / "java").write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("JAVA_HOME", str(machine / "nowhere"))
    with pytest.raises(RetrievalError) as caught:
        search()
    for part in (
        "old: Java 17",
        "jre: without jdk.incubator.vector",
        "bare: without a server JVM library",
        "broken: does not list its modules",
        "nowhere: no bin/java",
        "JDK 21 or newer",
        "set JAVA_HOME",
        "retrieval.kind to 'bm25'",
    ):
        assert part in str(caught.value)


def test_without_any_java_the_error_says_so(machine: Path) -> None:
    with pytest.raises(RetrievalError, match="no Java found at all"):
        search()
