"""A process that follows: it does what the leader of its team (team.py) says, until it says end.

It has the leader's recipe, machine and input files, and nothing else: no store, no terminal. What
goes wrong is the last thing that it says, for the leader to read. Signals are the leader's to heed.
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torch import Tensor

from model.evaluate import score
from model.parallel import Replicas, hear, whole
from model.trainer import Trainer
from pipeline.checkpoint import in_order
from pipeline.loop import GLANCE
from pipeline.machine import torchrun
from pipeline.redact import redacted
from pipeline.stages import train
from pipeline.team import join


def follow() -> None:
    """Do what the leader says. Raises whatever goes wrong in doing so."""
    team, trainer = Replicas(), None
    while True:
        what, *facts = hear()
        if what == "end":
            return
        if what == "build":
            trainer = None  # before there is another
            (told,) = facts
            job = train.Job.from_tree(told)
            trainer = train.prepared(job, team)
            continue
        assert trainer is not None
        if what == "step":
            (trainer.lr_factor,) = facts
            trainer.run_step()
        elif what == "load":
            trainer.load(trainer.team.spread(None))
        elif trainer.team.sharded:
            _bring_parts(what, trainer, job.tokens("validation"))


def _bring_parts(what: str, trainer: Trainer, validation: np.ndarray) -> None:
    """Take part in what the leader does with whole weights or tensors, in its order."""
    tensors: Mapping[str, Tensor] = {}
    if what == "look":
        with trainer.result() as model:
            score(model, validation[:GLANCE], stride=model.config.context)
    elif what == "weights":
        tensors = trainer.weights()
    else:
        assert what == "state", what
        tensors = trainer.state()
    for name in in_order(tensors):
        whole(tensors[name].detach())


def follow_torchrun() -> None:
    """A process that torchrun has started beside the leader."""
    heed_no_signals()
    join(*(torchrun() or (0, 1)))
    _do()


def heed_no_signals() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _do() -> None:
    try:
        follow()
    except Exception as error:  # whatever it is, others wait for us, and the leader should hear
        if os.environ.get("IGNITE_DEBUG"):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        words = lines[0] if isinstance(error, ValueError) else f"{type(error).__name__}: {lines[0]}"
        print(f"error: {redacted(words)}", file=sys.stderr, flush=True)
        os._exit(1)  # a sum that never ends would keep a process from ending in order
    dist.destroy_process_group()


def _end_with_the_leader() -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the leader is gone or lets go
    os._exit(1)


def main() -> None:
    """A process that the leader has started, with the arguments FOLDER RANK SIZE (team.py)."""
    heed_no_signals()
    threading.Thread(target=_end_with_the_leader, daemon=True).start()
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store = dist.FileStore(str(folder / "store"), size)
    store.set(f"here {rank}", "")
    join(rank, size, store)
    _do()
