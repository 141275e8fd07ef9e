"""Chooses the Ray a command runs on: the cluster that RAY_ADDRESS names (as in a submitted job), or a local one.

The command line connects; the stages take the Ray they find, and ask here what its nodes lack.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from steper_ray.core.errors import SteperError, StorageError, in_one_line
from steper_ray.core.storage import is_remote

logger = logging.getLogger(__name__)

_OPEN = "STEPER_ALLOW_OPEN_RAY"
_LOOK_S = 60.0  # for all nodes to look at run_dir; each starts a process for it
_EVERY_S = 0.2  # between two looks whether Ray is there
_OTHER_RAY = "correct it, or unset RAY_ADDRESS for a Ray of this machine's own"
_AGAIN = 75  # exit status: the same command may succeed
_RECONNECT, _RECONNECT_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0


@dataclass(frozen=True, slots=True)
class Need:
    """Resources of each of `count` processes; `settings` are the config fields that set count, CPUs and GPUs."""

    count: int
    num_cpus: float
    num_gpus: float
    settings: tuple[str, str, str]


def lacking(need: Need) -> str:
    """Why no more of the processes start: what the nodes of the cluster do not have. Empty where there is room.

    Nodes that an autoscaler may still add are not known: who waits for them sees what is waited for.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": need.num_cpus, "GPU": need.num_gpus}
    asked = {name: amount for name, amount in wanted.items() if amount}
    room = sum(
        min((int(node.get(name, 0) // amount) for name, amount in asked.items()), default=need.count)
        for node in nodes
    )
    if room >= need.count:
        return ""
    fields = dict(zip(("CPU", "GPU"), need.settings[1:], strict=True))
    each = " and ".join(
        f"{amount:g} {name}s ({fields[name]}; the largest node has {max(n.get(name, 0) for n in nodes):g})"
        for name, amount in asked.items()
    )
    return (
        f"waiting for the cluster: {need.settings[0]}={need.count} of {each} each; there is room for {room}"
    )


def connect(run_dir: Path | None = None) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts a quiet Ray on this machine; nothing where Ray runs already.

    A local Ray never joins another that runs here, opens no dashboard, and counts at least
    two CPUs, so that the two workers of the default config start on any machine. SIGTERM then stops a command as
    Ctrl-C does; the loss of its Ray ends it with one line and status 75. Raises StorageError for a `run_dir` that
    other nodes or later jobs do not see.
    """
    # Ray's core logs as errors what is none (that an actor's arguments are in the object store); what ends it is fatal.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault(
        "RAY_ENABLE_AUTO_CONNECT", "0"
    )  # a thread that outlives Ray would start another one
    import ray

    if ray.is_initialized():
        _check(run_dir)
        return
    _init()
    context = ray.get_runtime_context()
    here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    places = context.gcs_address, f"{here['NodeManagerAddress']}:{here['NodeManagerPort']}"
    threading.Thread(target=_watch, args=places, name="watch", daemon=True).start()
    _check(run_dir)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)  # Ray's own handler prints two stack traces


def leave(status: int) -> NoReturn:
    """Ends this process with `status`, and its local Ray.

    Not by the interpreter's own end: Ray's threads still run in it, and now and then one of them changes the status.
    """
    import ray

    with suppress(Exception):
        ray.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _check(run_dir: Path | None) -> None:
    import ray

    if run_dir is not None:
        is_copy = bool(ray.get_runtime_context().runtime_env.get("working_dir"))
        nodes = [node for node in ray.nodes() if node["Alive"]]
        check_run_dir(run_dir, is_copy=is_copy, nodes=len(nodes))
        if len(nodes) > 1 or is_remote(run_dir):
            check_nodes(run_dir, nodes)


def check_nodes(run_dir: Path, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Has every node with CPUs read a file of this driver in run_dir, and write one that the driver then looks for.

    Raises StorageError, naming the first node that does not see the same folder. A node that does not answer is a
    warning.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from steper_ray.core.files import remove_folder, write_text

    marks = run_dir / ".nodes" / uuid.uuid4().hex
    write_text(marks / "driver", "")
    look, asked = ray.remote(_look), dict[Any, Mapping[str, Any]]()
    for node in nodes:
        if node["Resources"].get("CPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = look.options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            asked[task.remote(marks, node["NodeID"])] = node
    try:
        done, late = ray.wait([*asked], num_returns=len(asked), timeout=_LOOK_S)
        for one in late:
            logger.warning(
                "node %s did not say in %.0f s whether it sees %s", _name(asked[one]), _LOOK_S, run_dir
            )
        for one in done:
            _believe(ray.get, one, asked[one], run_dir, marks)
    finally:
        remove_folder(marks)


def _look(marks: Path, node: str) -> str:
    """The fault of a run_dir on this node; empty where there is none."""
    from steper_ray.core.files import write_text

    try:
        if not (marks / "driver").exists():
            return "it does not see what the driver wrote there"
        write_text(marks / node, "")
    except (StorageError, ValueError) as error:
        return str(error)
    return ""


def _believe(get: Any, asked: Any, node: Mapping[str, Any], run_dir: Path, marks: Path) -> None:
    from ray.exceptions import NodeDiedError, RayError, TaskUnschedulableError

    try:
        wrong = get(asked) or (
            "" if (marks / node["NodeID"]).exists() else "the driver does not see what it wrote there"
        )
    except (NodeDiedError, TaskUnschedulableError):
        return  # the node is gone, and takes no part
    except RayError as error:
        wrong = " ".join(str(error).split())[-300:]
    if wrong and is_remote(run_dir):
        raise StorageError(f"{run_dir}: node {_name(node)} cannot use it: {wrong}")
    if wrong:
        raise StorageError(
            f"{run_dir}: not shared with node {_name(node)}: {wrong}. Give a run_dir that every node sees: a shared "
            "folder, mounted on all of them at the same place, or s3://bucket/folder"
        )


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def check_run_dir(run_dir: Path, *, is_copy: bool, nodes: int) -> None:
    """Raises StorageError for a relative run_dir where the working folder is a job's copy, or one of several nodes'."""
    if is_remote(run_dir) or run_dir.is_absolute() or not (is_copy or nodes > 1):
        return
    why = (
        "a relative path lies in this job's copy of the folder, which Ray deletes"
        if is_copy
        else f"a relative path is another folder on each of the {nodes} nodes"
    )
    raise StorageError(
        f"run_dir={run_dir}: {why}: give a whole path that every node sees, such as run_dir={Path('/shared') / run_dir}"
    )


def check_open_ray() -> None:
    """Raises SteperError where a Ray of this machine would take code from anyone who reaches its ports.

    Ray listens on all interfaces, whatever address it is given; its token is what keeps others out.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "disabled" or os.environ.get(_OPEN) == "1":
        return
    raise SteperError(
        "RAY_AUTH_MODE=disabled: whoever reaches a port of this machine's Ray could run code here. Unset it, or where "
        f"a firewall closes these ports set {_OPEN}=1"
    )


def check_address(address: str) -> None:
    """Raises SteperError where nothing listens at a `host:port`, at which Ray itself would try for many minutes."""
    if address.rpartition(":")[2].isdigit() and "/" not in address and (why := _refusal(address)):
        raise SteperError(f"RAY_ADDRESS={address}: no Ray answers there ({why}): {_OTHER_RAY}")


def _watch(head: str, own: str) -> None:
    """Ends this process, and what it started, once its Ray is gone: the head node, or the node it runs on.

    Ray's core would end it too, without a word. Not where the process itself has left that Ray.
    """
    patience = 0.8 * float(os.environ.get(_RECONNECT, _RECONNECT_S))  # a head node may come back
    answered = time.monotonic()
    while True:
        time.sleep(_EVERY_S)
        if _refusal(head) is None:
            answered = time.monotonic()
        elif time.monotonic() - answered > patience:
            return _end(head, f"head node at {head}")
        if isinstance(_refusal(own), ConnectionRefusedError):
            return _end(head, f"node at {own}, on which this command runs,")


def _refusal(address: str) -> OSError | None:
    """Why nothing listens there; a process that stands still does."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_LOOK_S):
            return None
    except OSError as error:
        return error


def _end(head: str, what: str) -> None:
    import psutil
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().gcs_address != head:
        return
    print(
        f"error: Ray's {what} is gone. What is done is kept: run the same command again",
        file=sys.stderr,
        flush=True,
    )
    for process in psutil.Process().children(recursive=True):  # a local Ray
        with suppress(psutil.Error):
            process.kill()
    os._exit(_AGAIN)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _init() -> None:
    if address := os.environ.get("RAY_ADDRESS"):
        check_address(address)
        _start()
        return
    check_open_ray()
    # The stages show their own progress.
    for name in ("progress", "execution.streaming_executor"):
        logging.getLogger(f"ray.data._internal.{name}").setLevel(logging.ERROR)
    # An actor of every training, for notices that a node will be taken away.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    cpus = max(2, os.cpu_count() or 2)
    _start(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _start(**how: Any) -> None:
    import ray

    try:
        ray.init(**how)
    except Exception as error:  # Ray raises plain Exception, RuntimeError and others
        fix = _OTHER_RAY if "RAY_ADDRESS" in os.environ else "run the same command again"
        raise SteperError(f"Ray did not start ({in_one_line(error)}): {fix}") from error
