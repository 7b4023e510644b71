"""The verbs for what runs already: logs, stop, pull, watch, reap.

RUN is a container of this machine or a launch of the store, by its name or the beginning of it. A
launch can be seen to from any machine that has the store and, to destroy boxes, the account's key.
"""

import sys
import time
from pathlib import Path
from typing import Any

import click

from launchers import start
from launchers.attendance import Output, attended
from launchers.census import known, sorted_out
from launchers.history import history
from launchers.launches import Launch
from launchers.launches import chosen as chosen_launch
from launchers.local import verbs as containers
from launchers.start import credential_options, secrets_of
from launchers.target import Away, Box, Refused, Target
from launchers.targets import listed, seen_to
from pipeline.cli import stores
from pipeline.cli.options import open_store, store_option

run_argument = click.argument("run", required=False, metavar="[RUN]")
_TRIES, _PAUSE = 10, 3.0  # looks at whether boxes are gone, and seconds between them


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
    output = Output(launch, _write)
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


def _write(data: bytes) -> None:
    click.echo(data.decode("utf-8", "replace"), nl=False)
    sys.stdout.flush()


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
    raise SystemExit(0 if attended(launch, seen_to(launch)) in (0, 75) else 1)


def _give_up(launch: Launch) -> None:
    current = history(launch.events()).current
    if current is not None:
        launch.append("left", attempt=current.number, why="killed by launch stop --now", code=75)


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
    secrets = None
    if order.target == "vast":
        mine = my_credentials or (order.options.get("credentials") == "mine" and not credentials)
        secrets = secrets_of(order.options["store"], credentials, mine)
    raise SystemExit(start.see_through(launch, seen_to(launch, secrets), False))


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


@click.command()
@store_option
@click.option("--all", "every", is_flag=True, help="Also those on which a run lives; asks first.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be destroyed, only.")
@click.option("-y", "--yes", is_flag=True, help="With --all: do not ask.")
def reap(store: str, every: bool, dry_run: bool, yes: bool) -> None:
    """Destroy every rented machine of yours that bills without a run that lives on it.

    Whether one lives is judged by what it last said in the store, so give the store that it works
    on: machines of other stores are not known here, and are destroyed. Exit code 1 if something is
    still there in the end.

    \b
    launch reap -n --store s3://bucket/run
    launch reap --all --store s3://bucket/run
    """
    opened = open_store(store)
    left, silent = _rounds(opened, every, dry_run, yes)
    for name, why in silent.items():
        click.echo(f"{name} was not asked: {why}", err=True)
    for box in left:
        click.echo(f"still there: {box.label or box.id} ({box.id}), {box.state}", err=True)
    if (left and not dry_run) or silent:
        raise SystemExit(1)
    if not left:
        click.echo("nothing bills without a run")


def _rounds(store: Any, every: bool, dry_run: bool, yes: bool) -> tuple[list[Box], dict[str, str]]:
    """Destroy, and look again until it is so; what is left, and which services did not answer."""
    for round_ in range(_TRIES):
        services = dict(listed(store))
        silent = {name: told for name, told in services.items() if isinstance(told, str)}
        wanted: list[Box] = []
        for name, told in services.items():
            if isinstance(told, str):
                continue
            live, idle = sorted_out(known(store), told)
            wanted += idle + (live if every else [])
            if every and live and not (dry_run or yes) and round_ == 0:
                click.confirm(f"runs live on {len(live)} of them. Destroy them?", abort=True)
            _destroy(store, name, idle + (live if every else []), dry_run)
        if not wanted or dry_run:
            return wanted, silent
        time.sleep(_PAUSE if round_ else 0.5)
    return wanted, silent


def _destroy(store: Any, name: str, boxes: list[Box], dry_run: bool) -> None:
    from launchers.targets import connect

    target = connect(name, store, {}) if boxes and not dry_run else None
    for box in boxes:
        does = "would destroy" if target is None else "destroying"
        what = f"{box.label or box.id} ({box.id}, {box.gpu} {box.state})"
        click.echo(f"{does} {what}, ${box.per_hour:.3f} an hour")
        if target is None:
            continue
        try:
            target.destroy(box.id)
        except (Away, Refused) as error:
            click.echo(f"  not yet: {error}", err=True)
