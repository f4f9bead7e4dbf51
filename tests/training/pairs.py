"""Two processes at once, as torchrun would start them, for tests of what they exchange."""

import logging
import multiprocessing
import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from livetalk.training import distributed


def join(rank, port):
    """To be called first in each of them. A process that dies fails the test instead of hanging it."""
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    assert distributed.join(torch.device("cpu")) == torch.device("cpu")


def in_pairs(act, folder, *more):
    """Runs act(rank, port, folder, *more) in two processes; returns what they left as RANK.pt in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # They are forked from a process that has imported what takes seconds to import, and has done nothing else.
    multiprocessing.set_forkserver_preload(["livetalk.training.trainer", "tests.training.test_sharded"])
    mp.start_processes(act, (port, str(folder), *more), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
