"""A command as a person sees it: what it prints, and how it ends when it is stopped."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from processes import children
from waiting import wait_until

#: All that a build of the miniature prints on stderr.
CALM = re.compile(
    r"\[.* Set ray log level from environment variable .*|trajectories: \d+ of 448 questions .*"
)
STOPPED = "stopped; the same command continues where it left off"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_build_says_so_in_one_line_and_leaves_no_process(
    tmp_path: Path, sent: signal.Signals
) -> None:
    """Ray would print stack traces for SIGTERM, and its threads would start another Ray."""
    log = tmp_path / "stderr"
    command = [sys.executable, "-m", "steper_ray.cli.main", "build", f"run_dir={tmp_path / 'run'}"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "--config", "jobs/configs/miniature.yaml"], stderr=stderr, stdout=stderr
        )
        wait_until(lambda: "trajectories: " in log.read_text(), "the first line", in_vain=process.poll)
        below = children(psutil.Process(process.pid))
        process.send_signal(sent)
        assert process.wait(timeout=120) == 130
    *lines, last = log.read_text().splitlines()
    assert [line for line in lines if not CALM.fullmatch(line)] == []
    assert last == STOPPED
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []
