"""The jobs as a user of a cluster runs them: three nodes with token auth, `ray job submit`, then `serve run`.

The nodes share an object store and no disk: each has folders of its own where the others have theirs.
"""

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from manifests import read_values, render
from waiting import answers, wait_until

from steper_ray.core.files import write_text
from steper_ray.core.storage import as_path

pytestmark = pytest.mark.namespaces

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
SMALL = [
    "corpus.miniature.worlds=2",
    "corpus.miniature.questions_per_world=4",
    "build.teacher=annotation",
    "train.max_steps=2",
    "train.num_cpus=2",  # no node has room for both workers
    "evaluate.corpus.miniature.worlds=1",
    "evaluate.corpus.miniature.questions_per_world=2",
    "evaluate.units=[sentence]",
    "evaluate.engines=1",
    "sampling.max_tokens=24",
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """Three nodes of this machine, the first one with a dashboard and a job server, and a token.

    `disk` is another folder for each of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.gcs, self.dashboard = free_port(), free_port()
        self.env = os.environ | {
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "XDG_CACHE_HOME": str(self.disk / "cache"),
        }
        for name in ("RAY_ADDRESS", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"):
            self.env.pop(name, None)
        self.headers = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        self.log = folder / "head.log"
        self.head = self._start(
            self.log,
            f"--head --port={self.gcs} --dashboard-port={self.dashboard} --dashboard-host=127.0.0.1 --num-cpus=2 "
            f"--node-ip-address=127.0.0.1 --temp-dir={self.disk}/ray --disable-usage-stats",
        )
        self.others: list[subprocess.Popen[bytes]] = []

    def _start(self, log: Path, options: str) -> subprocess.Popen[bytes]:
        # The port's default is one for every node of a machine: the second's agent then takes no jobs.
        ray = f"ray start --block --num-gpus=0 --dashboard-agent-listen-port={free_port()} {options}"
        command = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {self.disk} && exec {ray}"]
        with log.open("w") as out:
            return subprocess.Popen(
                command, env=self.env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def join(self) -> None:
        """Starts the other nodes."""
        self.others = [
            self._start(
                self.folder / f"node-{number}.log",
                f"--address=127.0.0.1:{self.gcs} --node-ip-address=127.0.0.{number} --num-cpus={4 - number}",
            )
            for number in (2, 3)
        ]

        def alive() -> bool:
            reply = httpx.get(f"{self.address}/nodes?view=summary", headers=self.headers, timeout=60)
            nodes = reply.json()["data"]["summary"]
            return sum(node["raylet"].get("state") == "ALIVE" for node in nodes) == 3

        wait_until(alive, "three nodes", seconds=180, every=0.5)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def wait_until_ready(self) -> None:
        """Until a job can be submitted: the job server answers some seconds before its agent takes jobs."""

        def takes_a_job() -> bool:
            with contextlib.suppress(httpx.TransportError):
                reply = httpx.post(
                    f"{self.address}/api/jobs/", headers=self.headers, json={"entrypoint": "true"}, timeout=60
                )
                return reply.status_code == 200
            return False

        def ended() -> str | None:
            return None if self.head.poll() is None else self.log.read_text()

        wait_until(takes_a_job, "the job server", seconds=180, in_vain=ended, every=0.5)

    def on_head(self, *command: str) -> list[str]:
        """A command as it runs on the first node, in the folder of this repository."""
        return ["nsenter", f"--target={self.head.pid}", "--mount", f"--wdns={ROOT}", *command]

    def submit(self, *entrypoint: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = ["ray", "job", "submit", "--address", self.address, "--working-dir", str(ROOT), "--"]
        return subprocess.run(
            [*command, *entrypoint], env=env or self.env, capture_output=True, text=True, timeout=400
        )

    def stop(self) -> None:
        # Each of its processes by itself: `ray stop` would also end every other Ray of this machine.
        nodes = [psutil.Process(node.pid) for node in (*self.others, self.head)]
        for process in [*nodes, *(child for node in nodes for child in node.children(recursive=True))]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for node in (*self.others, self.head):
            node.wait()


@pytest.fixture(scope="module")
def cluster(bucket):
    folder = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))
    head = Cluster(folder)
    try:
        head.wait_until_ready()
        head.join()
        yield head
    finally:
        head.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def run_dir(cluster, bucket):
    """A run whose three jobs were submitted one after another, as the manifests name them, with what each printed."""
    folder = as_path(f"{bucket}/run")
    options = [f"jobs.{job}.options={json.dumps(SMALL)}" for job in ("build", "train", "evaluate")]
    values = read_values(overrides=["config=jobs/configs/miniature.yaml", f"run_dir={folder}", *options])
    for job in values["jobs"]:
        (manifest,) = yaml.safe_load_all(render([job], values))
        done = cluster.submit(*shlex.split(manifest["spec"]["entrypoint"].replace("/app/", "")))
        assert done.returncode == 0, f"{job}: {done.stdout[-4000:]}\n{done.stderr[-2000:]}"
        write_text(folder / f"{job}.log", done.stdout)
    return folder


def test_a_client_without_the_token_is_turned_away(cluster):
    env = {k: v for k, v in cluster.env.items() if k != "RAY_AUTH_TOKEN"} | {"RAY_AUTH_TOKEN": "0" * 64}
    done = cluster.submit("python", "-c", "print('ran')", env=env)
    assert done.returncode != 0
    assert "ran" not in done.stdout


def test_the_three_jobs_leave_data_a_student_and_its_scores(run_dir):
    manifest = json.loads((run_dir / "data" / "manifest.json").read_text())
    assert manifest["counts"]["questions"] == 8
    assert (run_dir / "models" / "steper" / "model.safetensors").is_file()
    assert "EM" in (run_dir / "evaluate.log").read_text()


def test_a_relative_run_dir_in_a_jobs_copy_of_the_folder_is_refused_before_anything_is_asked(cluster):
    done = cluster.submit("python", "jobs/build_data.py", "--config", "jobs/configs/miniature.yaml")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "run_dir=runs/demo: a relative path lies in this job's copy of the folder" in said
    assert "such as run_dir=/shared/runs/demo" in said


def test_a_folder_that_the_nodes_do_not_share_is_refused_and_a_node_named_before_anything_is_asked(cluster):
    done = cluster.submit("python", "jobs/build_data.py", *SMALL, f"run_dir={cluster.disk}/run")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert re.search(
        r"disk/run: not shared with node \S+ \(127\.0\.0\.[23]\): it does not see what the driver", said
    )
    assert "s3://bucket/folder" in said


def test_serve_run_answers_with_the_student_of_the_run(cluster, run_dir, tmp_path):
    port = free_port()
    options = json.dumps(["engine.model=RUN_DIR/models/steper"])
    values = read_values(
        overrides=[
            f"config={ROOT}/jobs/configs/miniature.yaml",
            f"run_dir={run_dir}",
            f"service.options={options}",
            "service.replicas=1",
        ]
    )
    config = yaml.safe_load(render(["serve"], values))
    config["http_options"]["port"] = port
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    command = cluster.on_head("serve", "run", "--address", f"127.0.0.1:{cluster.gcs}", str(file))
    service = subprocess.Popen(
        command,
        env=cluster.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(
            lambda: answers(f"{url}/readyz"),
            "the service",
            in_vain=lambda: None if service.poll() is None else service.stdout.read(),
            every=0.5,
        )
        reply = httpx.post(
            f"{url}/v1/reason", json={"question": "Who is the mayor of Velmora?"}, timeout=120
        ).json()
        assert reply["steps"]
        assert reply["stop_reason"] in ("answered", "unsure", "step_limit", "empty")
    finally:
        os.killpg(service.pid, signal.SIGKILL)  # the cluster it runs on ends with this module
        service.wait()
