"""What each of two processes does for test_parallel.py: ``python parallel_ranks.py RANK FOLDER``.

One start for all cases, because starting takes longer than they do. What came out is left in the
folder, for the test to compare with what one process computes.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from test_trainer import SHAPE, TRAIN, VOCAB  # noqa: E402
from toys import noisy_text  # noqa: E402

from model.batches import Batches  # noqa: E402
from model.config import ModelConfig, TrainConfig  # noqa: E402
from model.gpt import GPT  # noqa: E402
from model.parallel import Replicas, Team, whole  # noqa: E402
from model.trainer import Trainer  # noqa: E402

SLICED = [(micro, drop) for micro in (1, 2, 8, 32) for drop in (0.0, 0.1)]
UNEVEN = [1, 2, 3, 7]  # sequences in a batch
OPTIMIZERS = ("adamw", "muon")
SHARDED = [
    ("adamw", {}, False),
    ("adamw", {"dropout": 0.1, "tied": False}, True),
    ("muon", {"dropout": 0.1, "norm": "rmsnorm", "qk_norm": True}, False),
    ("muon", {}, True),
]
# (rank that has too little memory, from which step, largest slice it holds, where it ends)
SHORT = [(0, 0, 2, "before"), (1, 3, 1, "behind"), (1, 2, 2, "first"), (0, 4, 1, "behind")]
THIN = replace(TRAIN, batch=32, steps=50)


def trainer(
    team: Team | None = None,
    train: TrainConfig = TRAIN,
    shape: ModelConfig = SHAPE,
    micro_batch: int = 4,
    seed: int = 0,
) -> Trainer:
    return Trainer(
        GPT(shape, VOCAB, seed),
        train,
        Batches(noisy_text(600, VOCAB), shape.context, train.batch, train.seed),
        micro_batch=micro_batch,
        device=torch.device("cpu"),
        team=team,
    )


def curve(run: Trainer, steps: int) -> list[tuple[float, float]]:
    """Loss and norm of each step."""
    reports = (run.run_step() for _ in range(steps))
    return [(report.loss, report.gradient_norm) for report in reports]


def full_state(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: whole(value).clone() for name, value in run.state().items()}


def sliced(team: Team | None = None, cases: list = SLICED) -> dict[Any, Any]:
    return {
        (micro, drop): curve(trainer(team, THIN, replace(SHAPE, dropout=drop), micro), 50)
        for micro, drop in cases
    }


def uneven(team: Team | None = None) -> dict[Any, Any]:
    return {
        batch: curve(trainer(team, replace(TRAIN, batch=batch), micro_batch=2), 10)
        for batch in UNEVEN
    }


def scaled(team: Team | None = None) -> Any:
    """float16, with a factor that overflows until it has been halved often enough."""
    run = trainer(team)
    run.model.compute_dtype, run.scaler.factor = torch.float16, 2.0**24
    losses = curve(run, 12)
    return losses, run.scaler.skipped, run.scaler.factor, full_state(run)


def short(team: Team) -> Any:
    """Out of memory on one process: the others go along, and the same step is done again."""
    told = []
    for rank, step, size, where in SHORT:
        run, wise = (trainer(team, shape=replace(SHAPE, dropout=0.2)) for _ in range(2))
        works = run._backward

        def backward(first: int, last: int, run=run, works=works, case=(rank, step, size, where)):
            rank, step, size, where = case
            first_slice = first == team.share(run.train.batch)[0]
            refused = team.rank == rank and run.step >= step and last - first > size
            refused = refused and (where != "first" or first_slice)
            if refused and where == "before":
                raise torch.OutOfMemoryError("CUDA out of memory")
            loss = works(first, last)
            if refused:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss

        run._backward = backward
        seen, expected = curve(run, 6), curve(wise, step)
        wise.micro_batch = size
        expected += curve(wise, 6 - step)
        same = all(torch.equal(run.state()[name], value) for name, value in wise.state().items())
        told.append((seen == expected, same, run.micro_batch, run.events))
    return told


def hopeless(team: Team) -> str:
    """One sequence is too much, for the second process alone; all must give up."""
    run = trainer(team)
    works = run._backward

    def backward(first: int, last: int) -> torch.Tensor:
        if team.rank == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return works(first, last)

    run._backward = backward
    try:
        run.run_step()
    except ValueError as error:
        return str(error)
    return ""


def resumed(team: Team) -> Any:
    """The same number of processes: the same bits. ``load`` brings the state to all."""
    told = {}
    for optimizer in OPTIMIZERS:
        train, shape = replace(TRAIN, optimizer=optimizer), replace(SHAPE, dropout=0.1)
        straight, after = trainer(team, train, shape), trainer(team, train, shape, seed=team.rank)
        expected = curve(straight, 6)
        state = full_state(straight)
        expected = curve(straight, 6)
        after.load(team.spread(state if team.rank == 0 else None))
        seen = curve(after, 6)
        final = full_state(straight)
        same = all(torch.equal(final[name], each) for name, each in full_state(after).items())
        told[optimizer] = (seen == expected, same, state, seen, final)
    return told


def sharded(team: Team, make: Callable[[], Team]) -> Any:
    """The curve and the state of parts, beside those of replicas; and each goes on from the other.

    Returns (curve, state) of: replicas, parts, replicas after parts, parts after replicas.
    """
    told = []
    for optimizer, more, recompute in SHARDED:
        train, shape = replace(TRAIN, optimizer=optimizer), replace(SHAPE, **more)

        def run_of(of: Team, train=train, shape=shape, recompute=recompute) -> Trainer:
            run = trainer(of, train, shape, micro_batch=2, seed=0)
            run.model.recompute = recompute
            return run

        def done(run: Trainer) -> Any:
            return curve(run, 6), full_state(run)

        replicas, parts = run_of(team), run_of(make())
        one, other = done(replicas), done(parts)
        third, fourth = run_of(team), run_of(make())
        first = team.rank == 0
        third.load(third.team.spread(other[1] if first else None))
        fourth.load(fourth.team.spread(one[1] if first else None))
        ids = torch.arange(16).view(2, 8) % VOCAB
        looks = [run.model.token_losses(ids, ids) for run in (replicas, parts)]
        told.append((one, other, done(third), done(fourth), looks))
    return told


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    team = Replicas()
    told = {
        "sliced": sliced(team),
        "uneven": uneven(team),
        "scaled": scaled(team),
        "short": short(team),
        "hopeless": hopeless(team),
        "resumed": resumed(team),
        "least": team.least(5 - rank),
    }
    from model.sharding import Shards

    told |= {"sharded": sharded(team, Shards)}
    torch.save(told, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
