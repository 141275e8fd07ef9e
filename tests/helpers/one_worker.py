"""A process group of this process alone, for what trains without Ray."""

import os
from contextlib import contextmanager

import torch
import torch.distributed as dist

from steper_ray.training.engine import Worker


@contextmanager
def one_worker(folder):
    """The only worker of a group that meets in a file below `folder`."""
    import deepspeed

    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield Worker(0, 1, torch.device("cpu"))
    finally:
        if deepspeed.comm.is_initialized():  # it remembers its groups, and would go on with them
            deepspeed.comm.destroy_process_group()
            deepspeed.comm.comm.cdb = None
        else:
            dist.destroy_process_group()
        del os.environ["LOCAL_RANK"]
