"""The verbs for what runs already: logs, stop, pull, watch.

RUN is a container of this machine or a launch of the store, by its name or the beginning of it. A
launch can be seen to from any machine that has the store and, to destroy boxes, the account's key.
"""

import time
from pathlib import Path
from typing import Any

import click

from launchers import start
from launchers.attendance import Output, attended
from launchers.census import known
from launchers.history import history
from launchers.launches import Launch
from launchers.launches import chosen as chosen_launch
from launchers.local import verbs as containers
from launchers.start import credential_options, secrets_of
from launchers.target import Away, Box, Refused, Target
from launchers.targets import seen_to
from pipeline.cli import stores
from pipeline.cli.options import open_store, store_option

run_argument = click.argument("run", required=False, metavar="[RUN]")


def _found(run: str | None, store: str) -> Launch | None:
    """The launch that is meant; None if it is a container of this machine."""
    opened = open_store(store)
    if run is not None:
        here = containers.is_one(run) or not opened.names("launch")
        return None if here else chosen_launch(opened, run)
    open_ones = [each.launch for each in known(opened) if each.told.over is None]
    if len(open_ones) == 1 and not containers.any_runs():
        return open_ones[0]
    if open_ones:
        names = ", ".join(each.name for each in open_ones)
        raise ValueError(f"name the one you mean: {names}, or a container of `launch ps`")
    if (over := opened.names("launch")) and not containers.there():
        raise ValueError(f"nothing runs on {store}; of what is over, name one: {', '.join(over)}")
    return None


@click.command()
@run_argument
@store_option
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends; Ctrl-C leaves it.")
def logs(run: str | None, store: str, follow: bool) -> None:
    """Show what RUN has printed: a container or a launch of `launch ps`, or how its name begins.

    Without RUN it is the only one that runs. Of a launch every attempt is shown.
    """
    launch = _found(run, store)
    if launch is None:
        containers.logs(run, follow)
        return
    output = Output(launch)
    try:
        while True:
            told = history(launch.events())
            for attempt in told.attempts:
                if attempt.number >= output.attempt:
                    _head(output, attempt)
                    output.show(attempt.number)
            if not follow or told.over is not None:
                break
            time.sleep(2.0)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if told.current is not None and not launch.box(told.current.number):
        click.echo(_of_the_service(launch), nl=False)


def _head(output: Output, attempt: Any) -> None:
    if attempt.number > output.attempt:
        on = f" on {attempt.offer['gpu']}" if attempt.offer.get("gpu") else ""
        ended = f": {attempt.why}" if attempt.why else ""
        click.echo(f"== attempt {attempt.number}{on}{ended}", err=True)


def _of_the_service(launch: Launch) -> str:
    """What the service has of a box that has not said anything in the store yet."""
    target = seen_to(launch)
    mine = [box for box in target.boxes() if box.launch == launch.name]
    return "".join(f"{box.id} {box.state}: {box.why}\n{_printed(target, box)}" for box in mine)


def _printed(target: Target, box: Box) -> str:
    """A log that cannot be had is no error: of a box that boots there is none yet."""
    try:
        return target.output(box)
    except (Away, Refused) as error:
        return f"{error}\n"


@click.command()
@run_argument
@store_option
@click.option("--now", is_flag=True, help="Do not wait: what is not saved is computed again.")
@click.option("--why", default="", help="What to tell whoever looks.")
def stop(run: str | None, store: str, now: bool, why: str) -> None:
    """Let RUN save all and end, and see that nothing of it bills; the same command goes on.

    RUN is a container or a launch of `launch ps`, or how its name begins; without it, the only one
    that runs.
    """
    launch = _found(run, store)
    if launch is None:
        containers.stop(run, now)
        return
    launch.stop(why)
    if launch.order().target == "colab":
        click.echo(f"{launch.name}: the notebook looks every few seconds, saves all and ends")
        return
    if now:
        _give_up(launch)
    try:
        target = seen_to(launch)
    except ValueError as error:
        click.echo(f"{launch.name} is asked to stop. Whether it bills cannot be seen here: {error}")
        raise SystemExit(1) from None
    raise SystemExit(0 if attended(launch, target) in (0, 75) else 1)


def _give_up(launch: Launch) -> None:
    current = history(launch.events()).current
    if current is not None:
        unsure = current.id is None  # somebody may be asking for it this very moment
        why = "killed by launch stop --now"
        launch.append("left", attempt=current.number, why=why, code=75, unsure=unsure)


@click.command()
@click.argument("run")
@store_option
@credential_options
def watch(run: str, store: str, credentials: Path | None, my_credentials: bool) -> None:
    """See to launch RUN from here: show what it prints, replace what is lost, finish and tidy up.

    Any number of machines may watch one launch; one of them acts. Ctrl-C asks it to save and stop.
    """
    launch = chosen_launch(open_store(store), run)
    order = launch.order()
    if order.target == "colab":
        raise click.UsageError(f"{run} runs in a notebook: follow it with launch logs -f {run}")
    if order.target != "vast":
        raise SystemExit(start.see_through(launch, seen_to(launch), False))
    mine = my_credentials or (order.options.get("credentials") == "mine" and not credentials)
    secrets = secrets_of(order.options["store"], credentials, mine)
    target = seen_to(launch, secrets, credentials=start.kind_of(credentials, mine))
    raise SystemExit(start.see_through(launch, target, False))


@click.command()
@run_argument
@store_option
def pull(run: str | None, store: str) -> None:
    """Fetch the results and newest checkpoints of RUN into ./artifacts, as `pipeline pull` does.

    RUN is a container or a launch of `launch ps`, or how its name begins; without it, the only one
    that runs. One that works on a directory of this machine has nothing that is not there.
    """
    launch = _found(run, store)
    if launch is None:
        name, place = containers.name_and_place(run)
    else:
        name, place = launch.name, _brought(launch)
    if "://" not in place:
        click.echo(f"all of {name} lies in {place} already")
        return
    stores.fetch(place, "artifacts")


def _brought(launch: Launch) -> str:
    """Where its results are, after what lay with a service alone was brought."""
    if launch.order().target != "colab" and launch.store.remote is None:
        target = seen_to(launch)
        for box in target.boxes():
            if box.launch == launch.name and box.state == "ended":
                target.collect(box)
    return launch.store.place
