"""Finds a Java for Lucene: version 21 or newer with the module jdk.incubator.vector (what Anserini asks for).

Looks where Java is usually kept and asks each candidate itself; sets nothing, loads nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from steper_ray.core.errors import RetrievalError

MINIMUM = 21
MODULE = "jdk.incubator.vector"
_FOLDERS = (
    "/usr/lib/jvm/*",
    "/opt/java/*",
    "/Library/Java/JavaVirtualMachines/*/Contents/Home",
    "~/.sdkman/candidates/java/*",
    "~/.jdks/*",
)
_LIBRARIES = ("lib/server/libjvm.so", "lib/server/libjvm.dylib", "bin/server/jvm.dll")
_BASE = re.compile(r"^java\.base@(\d+)", re.MULTILINE)
_ASK_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Java:
    """A fitting JVM: JAVA_HOME and the shared library to load."""

    home: Path
    library: Path


@lru_cache(maxsize=1)
def find_java() -> Java:
    """The first fitting JVM: JAVA_HOME, the PATH's java, then the usual folders, newest name first.

    Raises RetrievalError that lists every Java looked at and what it lacks.
    """
    refused: list[str] = []
    for home in dict.fromkeys(_candidates()):
        lack = _lack(home)
        if lack is None:
            return Java(home, next(home / name for name in _LIBRARIES if (home / name).is_file()))
        refused.append(f"{home}: {lack}")
    seen = "; ".join(refused) or "no Java found at all"
    raise RetrievalError(
        f"retrieval.kind 'lucene' needs a JDK {MINIMUM} or newer with the module {MODULE} ({seen}): install "
        "one (such as Eclipse Temurin) and set JAVA_HOME to its folder, or set retrieval.kind to 'bm25'"
    )


def _candidates() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home).expanduser().resolve()
    if java := shutil.which("java"):
        yield Path(java).resolve().parents[1]
    for pattern in _FOLDERS:
        folder, rest = _split(Path(pattern).expanduser())
        yield from (
            path.resolve() for path in sorted(folder.glob(rest), reverse=True) if _java(path).is_file()
        )


def _split(pattern: Path) -> tuple[Path, str]:
    at = pattern.parts.index("*")
    return Path(*pattern.parts[:at]), "/".join(pattern.parts[at:])


def _java(home: Path) -> Path:
    return home / "bin" / ("java.exe" if os.name == "nt" else "java")


def _lack(home: Path) -> str | None:
    """The reason this Java cannot be used, or None."""
    try:
        asked = subprocess.run(
            [str(_java(home)), "--list-modules"],
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            check=True,
        )
    except FileNotFoundError:
        return "no bin/java"
    except (OSError, subprocess.SubprocessError):
        return "does not list its modules (older than Java 9, or broken)"
    version = _BASE.search(asked.stdout)
    if version is None or int(version.group(1)) < MINIMUM:
        return f"Java {version.group(1) if version else 'of unknown version'}"
    if f"\n{MODULE}@" not in f"\n{asked.stdout}":
        return f"without {MODULE}"
    if not any((home / name).is_file() for name in _LIBRARIES):
        return "without a server JVM library"
    return None
