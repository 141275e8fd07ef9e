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
from training_examples import gold_examples, write_trajectories
from waiting import wait_until

#: All that a build and a training of the miniature print on stderr.
CALM = re.compile(
    r"\[.* Set ray log level from environment variable .*|trajectories: \d+ of 448 questions .*"
    r"|tokens: .* files .*|memory of each of 2 workers.*|  (states|at work|together) .*|steper: .*(step/s|s/step).*|"
)
STOPPED = "stopped; the same command continues where it left off"


def stop(command: str, log: Path, begun: str, sent: signal.Signals, *overrides: str) -> None:
    """Starts a command, sends it the signal once it has begun, and checks what it prints and leaves."""
    call = [sys.executable, "-m", "steper_ray.cli.main", command, "--config", "jobs/configs/miniature.yaml"]
    with log.open("wb") as stderr:
        process = subprocess.Popen([*call, *overrides], stderr=stderr, stdout=stderr)
        wait_until(lambda: begun in log.read_text(), begun, in_vain=process.poll)
        below = children(psutil.Process(process.pid))
        process.send_signal(sent)
        assert process.wait(timeout=120) == 130
    *lines, last = log.read_text().replace("\r", "\n").splitlines()
    assert [line for line in lines if not CALM.fullmatch(line)] == []
    assert last == STOPPED
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []


def test_a_stopped_build_says_so_in_one_line_and_leaves_no_process(tmp_path: Path) -> None:
    """Ray would print stack traces for SIGTERM, and its threads would start another Ray."""
    stop("build", tmp_path / "log", "trajectories: ", signal.SIGTERM, f"run_dir={tmp_path / 'run'}")


def test_a_stopped_training_does_too_and_ends_with_the_same_status(tmp_path: Path) -> None:
    """Ray Train would end the process with status 0."""
    write_trajectories(tmp_path / "run" / "data" / "kept" / "part.parquet", gold_examples())
    overrides = f"run_dir={tmp_path / 'run'}", "train.epochs=2000"
    stop("train", tmp_path / "log", ", loss ", signal.SIGINT, *overrides)


@pytest.mark.parametrize("victim", ["gcs_server", "raylet"])
def test_a_command_whose_ray_is_gone_says_so_and_leaves_no_process(
    tmp_path: Path, monkeypatch, victim
) -> None:
    """Ray's core would end it a minute later, without a word."""
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    log, command = tmp_path / "log", [sys.executable, "-m", "steper_ray.cli.main", "build"]
    settings = ["--config", "jobs/configs/miniature.yaml", f"run_dir={tmp_path / 'run'}"]
    with log.open("wb") as stderr:
        process = subprocess.Popen([*command, *settings], stderr=stderr, stdout=stderr)
        wait_until(lambda: "trajectories: " in log.read_text(), "a build", in_vain=process.poll)
        below = children(psutil.Process(process.pid))
        (head,) = (one for one in below if f"/{victim} " in " ".join(one.cmdline()))
        head.kill()
        assert process.wait(timeout=120) == 75
    last = log.read_text().replace("\r", "\n").splitlines()[-1]
    assert re.fullmatch(r"error: Ray's (head )?node at .* is gone\. .* run the same command again", last)
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []
