"""Run by torchrun: trains a tiny network, sharded; killed where it is told: `doomed.py FOLDER never|step|save`."""

import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from livetalk.training import distributed, sharded_checkpoint
from tests.training.test_sharded import CONFIG, trainer_of

VICTIM = 1


def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def main():
    folder, when = Path(sys.argv[1]), sys.argv[2]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as livetalk/cli.py does
    torch.set_num_threads(1)
    distributed.join(torch.device("cpu"))
    trainer = trainer_of("ode", folder, replace(CONFIG, steps=6))
    loss = trainer.objective.loss

    def dies_in_the_middle(step, *others):
        if when == "step" and distributed.rank() == VICTIM and step == 3:
            trainer.settle()  # what was saved at step 2 is there
            kill()
        if when == "save" and distributed.rank() == VICTIM and step == 3:
            sharded_checkpoint.FileSystemWriter.write_data = kill  # of the save after this step
        return loss(step, *others)

    trainer.objective.loss = dies_in_the_middle
    trainer.fit()
    if distributed.rank() == 0:
        print(f"done at step {trainer.step}")
    distributed.leave()


if __name__ == "__main__":
    main()
