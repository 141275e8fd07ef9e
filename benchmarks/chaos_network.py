"""Builds and trainings on nodes of their own networks, while a node is cut off or the head dies and comes back.

Three nodes of Ray run on this machine: the head, without CPUs, and two in network namespaces with addresses of their
own. The command runs on the first of the two.

    cut     nothing passes between the second node and the others for --seconds, then everything does again
    head    all processes of the head are killed; --seconds later it starts again with its state from a Redis

The end is compared with that of an undisturbed run, as in chaos.py. Needs root, `ip` (iproute2), and redis-server for
`head`:

    python benchmarks/chaos_network.py cut --stage build --seconds 90
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from chaos import SETTINGS, Found, Run, compare, shards

BIN = Path(sys.executable).parent
NET = "10.99.7"
BRIDGE, PORT, REDIS_PORT = "steper0", 6399, 6398
MORE = ("build.engines=2", "train.workers=2", "reasoning.max_steps=5", "corpus.miniature.worlds=24")
_UP_S = 120


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def network(spaces: int) -> Iterator[None]:
    """Namespaces steper1, steper2, ..., each with the address NET.(2, 3, ...); this machine is NET.1."""
    with ExitStack() as undo:
        ip("link", "add", BRIDGE, "type", "bridge")
        undo.callback(ip, "link", "del", BRIDGE)
        ip("addr", "add", f"{NET}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for n in range(1, spaces + 1):
            ip("netns", "add", f"steper{n}")
            undo.callback(ip, "netns", "del", f"steper{n}")
            ip("link", "add", f"veth{n}", "type", "veth", "peer", "name", "eth0", "netns", f"steper{n}")
            undo.callback(ip, "link", "del", f"veth{n}")  # the kernel keeps it while a process is left
            ip("link", "set", f"veth{n}", "master", BRIDGE, "up")
            for words in (("addr", "add", f"{NET}.{n + 1}/24", "dev", "eth0"), ("link", "set", "eth0", "up"),
                          ("link", "set", "lo", "up"), ("route", "add", "default", "via", f"{NET}.1")):  # fmt: skip
                ip("-n", f"steper{n}", *words)
        yield


class Node:
    """`ray start` in a namespace, with files of its own in /tmp/ray; number 0 is the head, outside of them."""

    def __init__(self, number: int, folder: Path, env: Mapping[str, str], *words: str) -> None:
        self.number = number
        self._log = (folder / f"node{number}.log").open("a")
        ray = [str(BIN / "ray"), "start", "--block", f"--node-ip-address={NET}.{number + 1}",
               "--disable-usage-stats", *words]  # fmt: skip
        space = ["ip", "netns", "exec", f"steper{number}"] if number else []
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
               'mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && "$@"', "-"]  # fmt: skip
        self.process = subprocess.Popen(
            [*space, *own, *ray], env=env, stdout=self._log, stderr=subprocess.STDOUT
        )
        wait_for(psutil.Process(self.process.pid).children)

    def enter(self) -> list[str]:
        """A command line that begins so runs beside the node."""
        (first,) = psutil.Process(self.process.pid).children()
        return [
            "nsenter",
            "--target",
            str(first.pid),
            "--mount",
            "--pid",
            *(["--net"] if self.number else []),
        ]

    def kill(self) -> None:
        """All its processes at once: the first of their namespace ends the others."""
        self.process.kill()
        self.process.wait()
        self._log.close()


class Elsewhere(Run):
    """A command that runs beside a node."""

    def __init__(self, stage: str, run_dir: Path, node: Node, env: Mapping[str, str]) -> None:
        self._log = run_dir.with_suffix(".log").open("w+")
        command = [*node.enter(), sys.executable, "-m", "steper_ray.cli.main", stage]
        command += [*SETTINGS, *MORE, f"run_dir={run_dir}"]
        self.process = subprocess.Popen(command, env=env, stdout=self._log, stderr=subprocess.STDOUT)
        self._all = set()


def head(folder: Path, env: Mapping[str, str]) -> Node:
    own = env | {"RAY_REDIS_ADDRESS": f"127.0.0.1:{REDIS_PORT}"}
    words = ("--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
    node = Node(0, folder, own, *words, f"--redis-password={env['RAY_AUTH_TOKEN']}")
    wait_for(lambda: active(node, env) > 0)
    return node


def active(node: Node, env: Mapping[str, str]) -> int:
    """Nodes that the head counts; 0 where it does not answer."""
    command = [*node.enter(), str(BIN / "ray"), "status", "--address", f"{NET}.1:{PORT}"]
    said = subprocess.run(command, env=env, capture_output=True, text=True).stdout
    return said.partition("Pending:")[0].count(" node_")


def wait_for(done) -> None:
    until = time.monotonic() + _UP_S
    while not done():
        if time.monotonic() > until:
            raise SystemExit(f"not there after {_UP_S} s")
        time.sleep(0.5)


def progress(stage: str, run_dir: Path) -> int:
    """Shards that are committed, or optimiser steps that are logged."""
    if stage == "build":
        return len(shards(run_dir))
    with suppress(FileNotFoundError):
        return len((run_dir / "training" / "steper" / "metrics.jsonl").read_text().splitlines())
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("cut", "head"))
    parser.add_argument("--stage", choices=("build", "train"), default="build")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--folder", type=Path, help="where logs stay; by default they go with the benchmark")
    args = parser.parse_args()
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(24), "OMP_NUM_THREADS": "1",
                        "RAY_ADDRESS": f"{NET}.1:{PORT}", "RAY_USAGE_STATS_ENABLED": "0"}  # fmt: skip
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="network-")))
        redis = subprocess.Popen(
            ["redis-server", "--port", str(REDIS_PORT), "--bind", "127.0.0.1", "--save", "",
             "--requirepass", env["RAY_AUTH_TOKEN"]], stdout=subprocess.DEVNULL)  # fmt: skip
        stack.callback(redis.kill)
        stack.enter_context(network(2))
        nodes = [head(folder, env)]
        nodes += [Node(n, folder, env, f"--address={NET}.1:{PORT}", "--num-cpus=2") for n in (1, 2)]
        stack.callback(lambda: [node.kill() for node in nodes])
        wait_for(lambda: active(nodes[0], env) == len(nodes))
        whole, run_dir = folder / "whole", folder / "disturbed"
        for stage in ("build", "train")[: 1 + (args.stage == "train")]:
            code, said = Elsewhere(stage, whole, nodes[1], env).end()
            if code:
                raise SystemExit(f"the undisturbed {stage} failed: {said[-3000:]}")
        if args.stage == "train":
            (run_dir / "data").mkdir(parents=True)
            (run_dir / "data" / "kept").symlink_to(whole / "data" / "kept")
        enough = progress(args.stage, whole) // 4
        run, started = Elsewhere(args.stage, run_dir, nodes[1], env), time.monotonic()
        wait_for(lambda: progress(args.stage, run_dir) >= enough or run.process.poll() is not None)
        before = progress(args.stage, run_dir)
        if args.what == "cut":
            ip("link", "set", "veth2", "down")
            time.sleep(args.seconds)
            ip("link", "set", "veth2", "up")
        else:
            nodes[0].kill()
            time.sleep(args.seconds)
            nodes[0] = head(folder, env)
        during = progress(args.stage, run_dir)
        code, said = run.end()
        found = Found()
        if code == 0:
            compare(args.stage, run_dir, whole, found)
        result = {
            "what": args.what, "stage": args.stage, "seconds": args.seconds, "status": code, "before": before,
            "after_it": during, "end": progress(args.stage, run_dir), "lost": found.lost, "repeated": found.repeated,
            "different": found.silent, "wall_s": round(time.monotonic() - started), "said": said[-1500:],
        }  # fmt: skip
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
