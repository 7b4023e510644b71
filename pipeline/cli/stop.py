"""The verb that asks whoever works on a run to stop, wherever that is."""

import json
from typing import Any

import click

from pipeline.cli.options import make_engine, recipe_options
from pipeline.cli.presence import presence
from pipeline.engine import log
from pipeline.engine.beat import BEAT_EVERY, REMOTE_EVERY, ask_to_stop, withdraw
from pipeline.engine.engine import Engine, Planned


@click.command()
@recipe_options
@click.option("--why", default="", help="What to tell whoever is stopped.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: who was asked.")
def stop(why: str, as_json: bool, **options: Any) -> None:
    """Ask whoever works on the last run to stop, on whatever machine.

    It saves all and ends with exit code 75, as on Ctrl-C; the next `pipeline run` goes on. A
    process that only follows another takes over then: ask again to stop that one, too.

    \b
    pipeline stop --store s3://bucket/run
    pipeline stop --why "the card is needed"
    """
    engine = make_engine(**options)
    asked = [told for planned in engine.plan() for told in _ask(engine, planned, why)]
    if as_json:
        click.echo(json.dumps(asked))
        return
    if not asked:
        click.echo(f"nobody works on this run on {engine.store.place}", err=True)
    within = REMOTE_EVERY if engine.store.remote else BEAT_EVERY
    for told in asked:
        click.echo(
            f"asked {told['owner']} ({told['where']}) to stop: {told['stage']} ends when its next "
            f"step is done and saved; it looks every {within:.0f} s"
        )


def _ask(engine: Engine, planned: Planned, why: str) -> list[dict[str, Any]]:
    """Ask the owner of a stage, if there is one that may be alive; whom, as JSON values."""
    claim = planned.state.owner if planned.state else None
    if claim is None or planned.key is None:
        return []
    told = presence(engine.store, planned.key, claim)
    if told["state"] == "interrupted":
        return []
    owner = claim.body["owner"]
    ask_to_stop(engine.store, owner, why)
    if log.read(engine.store, planned.key).owner != claim:
        withdraw(engine.store, owner)  # it has just ended: nobody else would remove the request
        return []
    return [
        {"stage": planned.stage.name, **{name: told[name] for name in ("owner", "where", "state")}}
    ]
