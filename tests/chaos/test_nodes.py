"""Nodes come and go while rollouts run: as many questions are under way as there is room for, and none is lost."""

import subprocess
import sys
import textwrap
import threading

import psutil
from builds import Watched
from processes import children, kill
from waiting import wait_until
from weather import Weather

PROBE = "Hi"  # what an engine asks its endpoint before the first question
IN_FLIGHT, N_QUESTIONS, SHARD_SIZE = 4, 160, 2
#: A build on one node of one CPU; each line of its input is a node that joins, or that is lost.
DRIVER = textwrap.dedent("""
    import os
    import sys
    import threading
    import ray
    from ray.cluster_utils import Cluster
    from steper_ray.config.file import load_config
    from steper_ray.data.build import build_data

    def build(settings):
        build_data(load_config(None, settings))
        os._exit(0)

    if __name__ == "__main__":
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
        ray.init(address=cluster.address, log_to_driver=False)
        threading.Thread(target=build, args=[sys.argv[1:]], daemon=True).start()
        joined = []
        for line in sys.stdin:  # Ray adds nodes in the main thread alone
            if line == "join\\n":
                joined.append(cluster.add_node(num_cpus=1, num_gpus=0))
            else:
                cluster.remove_node(joined.pop(), allow_graceful=False)
""")


class Tide(Weather):
    """Answers nothing while it is held back: the requests under way pile up to as many as the engines send."""

    def __init__(self) -> None:
        super().__init__(self._hold)
        self.under_way, self._lock = 0, threading.Lock()
        self.flows = threading.Semaphore(0)

    def let(self, questions: int) -> None:
        """So many questions are answered."""
        self.flows.release(questions)

    def _hold(self, question: str) -> str:
        if question == PROBE:
            return "well"
        with self._lock:
            self.under_way += 1
        self.flows.acquire()
        with self._lock:
            self.under_way -= 1
        return "well"


def test_rollouts_follow_nodes_that_join_and_lose_no_question_to_one_that_is_lost(tmp_path):
    log, build = tmp_path / "log", Watched(tmp_path / "run")
    with Tide() as tide, log.open("wb") as out:
        settings = [
            *(f"run_dir={build.run_dir}", "engine.kind=openai", "engine.model=m", f"engine.url={tide.url}"),
            *("engine.route=completions", "engine.max_batch=64", "engine.timeout_s=600", "build.engines=3"),
            *("corpus.miniature.worlds=16", "corpus.miniature.questions_per_world=10", "build.max_failed=0"),
            *(f"build.in_flight={IN_FLIGHT}", f"build.shard_size={SHARD_SIZE}", "build.match=contains"),
        ]
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *settings],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            text=True,
            start_new_session=True,
        )

        def tell(line: str) -> None:
            driver.stdin.write(f"{line}\n")
            driver.stdin.flush()

        def until(engines: int) -> None:
            wait_until(
                lambda: tide.under_way == engines * IN_FLIGHT,
                f"{engines} engines",
                in_vain=lambda: driver.poll() is not None and log.read_text()[-3000:],
            )

        started = []
        try:
            until(1)
            started = children(psutil.Process(driver.pid))
            tell("join")
            tell("join")
            until(3)
            tide.let(SHARD_SIZE * 10)
            wait_until(lambda: len(build.committed()) >= 4, "four shards", in_vain=driver.poll)
            before = build.committed()
            started = children(psutil.Process(driver.pid))
            tell("lose")
            tide.let(10**6)
            assert driver.wait(timeout=200) == 0, log.read_text()[-3000:]
        finally:
            for process in started:
                kill(process)
            driver.kill()
            psutil.wait_procs(started, timeout=60)
    after = build.committed()
    assert {shard: after[shard] for shard in before} == before
    assert len({t.question.id for t in build.trajectories()}) == len(build.trajectories()) == N_QUESTIONS
    assert build.owed() == []
    # Again alone: what the lost node had under way, or had answered and not committed.
    again = sum(count - 1 for question, count in tide.answered.items() if question != PROBE)
    assert again <= IN_FLIGHT + 3 * SHARD_SIZE
