"""The verb that asks whoever works on a run to stop, wherever that is."""

import json
from typing import Any

import click

from pipeline.cli.options import make_engine, open_store, recipe_options
from pipeline.cli.presence import presence
from pipeline.engine import log
from pipeline.engine.beat import BEAT_EVERY, REMOTE_EVERY, ask_to_stop, withdraw
from pipeline.store.store import Store


@click.command()
@recipe_options
@click.option("--why", default="", help="What to tell whoever is stopped.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: who was asked.")
def stop(why: str, as_json: bool, **options: Any) -> None:
    """Ask whoever works on this store to stop, on whatever machine; with a recipe, on that alone.

    It saves all and ends with exit code 75, as on Ctrl-C; the next `pipeline run` goes on. A
    process that only follows another takes over then: ask again to stop that one, too.

    \b
    pipeline stop --store s3://bucket/run
    pipeline stop --why "the card is needed"
    """
    told_which = any(value for name, value in options.items() if name not in ("store", "upstreams"))
    if told_which:
        engine = make_engine(**options)
        store = engine.store
        keys = [planned.key for planned in engine.plan() if planned.key]
    else:
        store = open_store(options["store"])
        keys = log.keys(store)
    asked = [told for key in keys for told in _ask(store, key, why)]
    if as_json:
        click.echo(json.dumps(asked))
        return
    if not asked:
        click.echo(f"nobody works on {'this run on ' * told_which}{store.place}", err=True)
    within = REMOTE_EVERY if store.remote else BEAT_EVERY
    for told in asked:
        then = (
            f"{told['stage']} ends when its next step is done and saved; it looks every "
            f"{within:.0f} s"
            if told["state"] == "running"
            else f"it is silent, and stops if it still works on {told['stage']}"
        )
        click.echo(f"asked {told['owner']} ({told['where']}) to stop: {then}")


def _ask(store: Store, key: str, why: str) -> list[dict[str, Any]]:
    """Ask the owner of a key, if there is one that may be alive; whom, as JSON values."""
    state = log.read(store, key)
    if (claim := state.owner) is None:
        return []
    told = presence(store, key, claim)
    if told["state"] == "interrupted":
        return []
    owner = claim.body["owner"]
    ask_to_stop(store, owner, why)
    if log.read(store, key).owner != claim:
        withdraw(store, owner)  # it has just ended: nobody else would remove the request
        return []
    return [{"stage": state.stage, **{name: told[name] for name in ("owner", "where", "state")}}]
