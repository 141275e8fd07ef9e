"""An index whose build finds no room says so in one line, leaves nothing that passes for an index, and goes on."""

import subprocess
import sys

# A limit on a file's size stands for a full disk; it is raised until the whole index fits.
BUILD = """
import resource, sys
from pathlib import Path
from steper_ray.config import RetrievalConfig
from steper_ray.core.errors import SteperError
from steper_ray.retrieval import build_index, read_manifest
from steper_ray.schema import Passage

passages = [Passage(str(n), f"Title {n}", f"word{n} stands in passage {n % 97} of many") for n in range(4000)]
folder, whole = (Path(sys.argv[1]) / name for name in ("index", "whole"))
for room in (1_000, 20_000, 100_000, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        build_index(passages, RetrievalConfig(), folder)
    except SteperError as error:
        assert not folder.exists()
        print(error)
build_index(passages, RetrievalConfig(), whole)
one, two = ({file.name: file.read_bytes() for file in place.iterdir()} for place in (folder, whole))
print(one == two, sorted(path.name for path in folder.parent.iterdir()))
"""


def test_a_build_that_finds_no_room_says_so_and_the_next_one_is_as_if_nothing_had_been(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    *refusals, last = done.stdout.splitlines()
    assert last == "True ['.locks', 'index', 'whole']"
    assert len(refusals) == 3
    for line in refusals:
        assert "cannot be written" in line
        assert "File too large" in line
        assert line.endswith("the same command continues from what is committed")
