"""Which Ray a command runs on: the cluster that RAY_ADDRESS names (as in a submitted job), or one of its own.

Imported by the command line alone; the stages take the Ray they find.
"""

from __future__ import annotations

import logging
import os


def connect() -> None:
    """Joins the cluster of RAY_ADDRESS, or starts a quiet Ray on this machine; nothing where Ray runs already.

    A Ray of its own never reaches for another that happens to run here, opens no dashboard, and counts at least
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
