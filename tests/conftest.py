"""What every test stands on: no network, few threads, and parts beyond Python that may be missing.

A test marked `java`, `chromium`, `namespaces` or `vllm` is left out where that part is missing, and the last lines of
the run say how to add it. With CI=true in the environment a left-out test, for whatever reason, is a failure.
"""

import importlib.util
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import pytest

from steper_ray.core.errors import RetrievalError

# Before anything imports torch, Ray or transformers. What the caller has set stays.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # as on every local Ray
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}.items():
    os.environ.setdefault(_name, _value)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVERS = ("chromedriver",)
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


def _lack_of_java() -> str | None:
    from steper_ray.retrieval.java import find_java

    try:
        find_java()
    except RetrievalError:
        return (
            "no JDK 21 or later with the module jdk.incubator.vector: install Debian's openjdk-25-jdk-headless or "
            "openjdk-21-jdk-headless (Debian 12 has neither: Eclipse Temurin), or set JAVA_HOME to one"
        )
    return None


def _lack_of_chromium() -> str | None:
    if any(map(shutil.which, BROWSERS)) and any(map(shutil.which, DRIVERS)):
        return None
    return "no Chromium with its driver: apt-get install chromium chromium-driver"


def _lack_of_vllm() -> str | None:
    if importlib.util.find_spec("vllm"):
        return None
    return "no vLLM in this environment: make setup"


def _lack_of_namespaces() -> str | None:
    with suppress(OSError):
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0:
            return None
    return "no right to make mount namespaces: run the tests as root, or in a container with CAP_SYS_ADMIN"


_PARTS: dict[str, Callable[[], str | None]] = {
    "java": cache(_lack_of_java),
    "chromium": cache(_lack_of_chromium),
    "namespaces": cache(_lack_of_namespaces),
    "vllm": cache(_lack_of_vllm),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark, lack in _PARTS.items():
        if item.get_closest_marker(mark) and (reason := lack()):
            pytest.skip(reason)


def _fail_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"left out, which fails in CI: {_reason(report)}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    _fail_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _fail_in_ci(report)
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Says what was left out and how to add it, below everything but pytest's closing line."""
    result = yield
    counts: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = _reason(report)
        counts[reason] = counts.get(reason, 0) + 1
    for reason, count in counts.items():
        terminalreporter.write_line(
            f"left out: {count} test{'s' if count > 1 else ''}, {reason}", yellow=True
        )
    return result


@pytest.fixture(scope="session")
def _object_store():
    from object_store import object_store

    with object_store() as found:
        yield found


@pytest.fixture(scope="session")
def bucket(_object_store):
    """The URL of a bucket of an S3-compatible server."""
    return _object_store[0]


@pytest.fixture
def store_weather(_object_store):
    """What happens to requests of the bucket's server; calm again after the test."""
    yield _object_store[1]
    _object_store[1].share = 0.0


@pytest.fixture
def bucket_folder(bucket, tmp_path, monkeypatch):
    """An empty folder of the bucket, and an empty cache for copies of what lies in it."""
    from steper_ray.core.storage import as_path

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return as_path(f"{bucket}/{tmp_path.name}-{uuid.uuid4().hex[:8]}")
