"""Processes to kill: drivers of their own, Rays of their own, and who runs below them.

The moments of a case are drawn from seeds. STEPER_CHAOS_ROUNDS=20 tries so many seeds of each case instead of one.
"""

import os
import secrets
import socket
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
from waiting import wait_until

ROUNDS = int(os.environ.get("STEPER_CHAOS_ROUNDS", "1"))


def rounds(*cases):
    """Every case with every seed."""
    return [pytest.param(case, seed, id=f"{case}-{seed}") for case in cases for seed in range(ROUNDS)]


def children(process, *, named=""):
    """The living processes below one, by a part of their command line."""
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            if named in " ".join(child.cmdline()):
                found.append(child)
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(address):
    with suppress(OSError), socket.create_connection(address.split(":"), timeout=1):
        return True
    return False


def kill(process):
    with suppress(psutil.NoSuchProcess):
        process.kill()


class Driver:
    """A script in a process of its own: on the Ray at `address`, on one of its own ("local"), or on a head node that is
    started beside it ("head"). It is given the address, the folder for a Ray of its own, and `arguments`."""

    def __init__(self, script, arguments, address, ray_folder):
        # Who has lost its Ray waits a minute for another one; the end is the same.
        env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_gcs_rpc_server_reconnect_timeout_s": "2"}
        self.head = None
        if address == "head":
            env["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            address = f"127.0.0.1:{free_port()}"
            command = (
                f"{sys.executable} -m ray.scripts.scripts start --head --block --include-dashboard=false "
                f"--num-cpus=4 --num-gpus=0 --port={address.split(':')[1]} --node-ip-address=127.0.0.1 "
                f"--temp-dir={ray_folder} --disable-usage-stats --dashboard-agent-listen-port={free_port()}"
            )
            self.head = self._start(command.split(), env)
            wait_until(lambda: listens(address), "the head node", in_vain=self.head.poll)
        command = [sys.executable, "-c", script, address, ray_folder, *arguments]
        self.process = self._start(command, env)

    @staticmethod
    def _start(command, env):
        # A session of its own: when a driver is gone, a process of Ray's ends the whole group that it was of.
        return subprocess.Popen(
            command,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def victims(self, case):
        if case == "driver":
            return [self.process]
        if case == "head":
            root = psutil.Process(self.head.pid)
            return [root, *children(root)]
        return children(psutil.Process(self.process.pid), named=f"/{case} ")

    def everything(self):
        roots = [psutil.Process(p.pid) for p in (self.head, self.process) if p and p.poll() is None]
        return [*roots, *(child for root in roots for child in children(root))]

    def reap(self, left):
        """No process is left of what was `everything` once."""
        for process in left:
            kill(process)
        psutil.wait_procs(left, timeout=60)
        for process in (self.head, self.process):
            if process:
                process.wait()
