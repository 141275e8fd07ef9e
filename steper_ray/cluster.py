"""Which Ray a command runs on: the cluster that RAY_ADDRESS names (as in a submitted job), or a local one.

The command line connects; the stages take the Ray they find, and ask here what its nodes lack.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Need:
    """What each of `count` processes reserves; `settings` are the config fields that set count, CPUs and GPUs."""

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


def connect() -> None:
    """Joins the cluster of RAY_ADDRESS, or starts a quiet Ray on this machine; nothing where Ray runs already.

    A local Ray never joins another that runs here, opens no dashboard, and counts at least
    two CPUs, so that the two workers of the default config start on any machine.
    """
    import ray

    if ray.is_initialized():
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init()
        return
    # The stages show progress of their own.
    for name in ("progress", "execution.streaming_executor"):
        logging.getLogger(f"ray.data._internal.{name}").setLevel(logging.ERROR)
    cpus = max(2, os.cpu_count() or 2)
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
