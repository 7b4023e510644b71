"""Who works on a key, where, and whether it shows signs of life; for people, at one look.

On the machine of the owner its lock tells for sure. From elsewhere a single look cannot tell a dead
owner from a live one (beat.py watches for minutes), so the age of its last beat is shown for what
it is: two clocks are compared, and no decision rests on it.
"""

import os
from datetime import datetime
from typing import Any

from pipeline.engine.beat import Watch, asked_to_stop, young
from pipeline.engine.log import Entry
from pipeline.store.locks import machine_id
from pipeline.store.store import Store

TAKEN_OVER = "taken over by the next `pipeline run`"


def presence(store: Store, key: str, claim: Entry) -> dict[str, Any]:
    """The owner of a claim as JSON values; ``state`` is running, silent or interrupted.

    ``here`` says that its state is certain, because it is a process of this machine.
    """
    watch = Watch(store, key, claim)
    alive, last = watch.alive(), watch.last()
    here = os.name == "posix" and claim.body.get("machine_id") == machine_id()
    here = not alive or (here and store.disk.stat(f"{watch.name}.lock") is not None)
    if not alive:
        state = "interrupted"
    else:
        state = "running" if here or young(last.get("at")) else "silent"
    return {
        "state": state,
        "owner": claim.body["owner"],
        "where": where(claim),
        "since": claim.body["at"],
        "here": here,
        "last_beat": last.get("at"),
        "progress": last.get("progress", {}),
        "asked_to_stop": asked_to_stop(store, claim.body["owner"]) if alive else None,
    }


def where(claim: Entry) -> str:
    """``gpu-box, cuda:0``: the owner's host, and the device if it was told to use a certain one."""
    host = claim.body["owner"].rsplit("-", 2)[0]
    device = claim.body.get("machine", {}).get("device")
    return f"{host}, {device}" if device and device != "auto" else host


def life(told: dict[str, Any]) -> str:
    """The signs of life of an owner elsewhere, in words; and whether it is to stop."""
    beat, asked = told["last_beat"], told.get("asked_to_stop")
    words = [f"to stop: {asked}"] if asked else []
    if told["state"] == "silent":
        since = f"silent since {moment(beat)} by its clock" if beat else "silent, without a beat"
        words.append(f"{since}, {TAKEN_OVER}")
    elif not told["here"]:
        words.append(f"last beat {moment(beat)} by its clock")
    return ", ".join(words)


def moment(at: str) -> str:
    """A time of an entry or beat in our time zone; the day only if it is not today."""
    try:
        when = datetime.fromisoformat(at).astimezone()
    except ValueError:
        return at
    today = when.date() == datetime.now().astimezone().date()
    return f"{when:%H:%M:%S}" if today else f"{when:%Y-%m-%d %H:%M:%S}"


def how_far(progress: dict[str, Any]) -> str:
    """The progress that an owner shows in its beat, as words."""
    done, total, unit = (progress.get(name) for name in ("done", "total", "unit"))
    rest = [f"{k} {v}" for k, v in progress.items() if k not in ("done", "total", "unit")]
    head = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
    return ", ".join([head, *rest])
