"""A write that finds no room says what, where and how much there is, whichever library was writing."""

import shutil
import subprocess
import sys

import pytest

from steper_ray.training.checkpoints import WriteError, writing

# What the writers of a training say when the kernel lets no more bytes through: here a limit on a file's size.
FULL = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from steper_ray.core.files import write_text
from steper_ray.training.checkpoints import WriteError, writing

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
folder, tensor = Path(sys.argv[1]), torch.zeros(100_000)
for write in (
    lambda: torch.save(tensor, folder / "shard.pt"),
    lambda: save_file({"weight": tensor}, folder / "model.safetensors"),
    lambda: (folder / "metrics.jsonl").write_text("x" * 100_000),
    lambda: write_text(folder / "seal.json", "x" * 100_000),
):
    try:
        with writing("the thing", folder):
            write()
    except WriteError as error:
        print(error)
"""


def test_every_writer_that_finds_no_room_is_told_of_with_the_folder_and_the_room_left(tmp_path):
    said = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(said) == 4
    for line in said:
        assert line.startswith(f"the thing cannot be written to {tmp_path}: ")
        assert line.count("cannot be written") == 1
        assert "GB free). Make room there and run it again" in line


def test_a_full_disk_is_called_so(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(WriteError, match="the disk is full"), writing("the log", tmp_path / "not" / "there"):
        raise OSError(28, "No space left on device")


def test_an_error_of_another_kind_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="peer"), writing("the log", tmp_path):
        raise RuntimeError("Connection closed by peer")
