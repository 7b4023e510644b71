"""The verb that looks at the machine: preflight."""

import json
from dataclasses import asdict

import click

from pipeline.cli.options import store_option
from pipeline.machine import Machine


@click.command()
@store_option
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps.")
@click.option("-q", "--quiet", is_flag=True, help="Print only notes and failures.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def preflight(store: str, device: str, quiet: bool, as_json: bool) -> None:
    """Say whether this machine can train, and with what.

    Looks at torch, the GPU and its driver, whether it computes rightly, and whether the store has
    space and can be written. Changes nothing. The exit code is 1 if something must be mended first.

    \b
    pipeline preflight
    pipeline preflight --device cuda:1 --quiet
    """
    from pipeline import preflight as looks

    try:
        Machine(device=device)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    report = looks.preflight(device, store)
    if as_json:
        torch = report.torch
        told = {"ok": report.ok, "checks": [asdict(check) for check in report.checks]}
        told["devices"] = [asdict(one) for one in torch.devices]
        told |= {"torch": torch.version, "cuda": torch.cuda, "archs": torch.archs}
        click.echo(json.dumps(told))
    else:
        for check in report.checks:
            if not (quiet and check.state == looks.OK):
                click.echo(f"{check.state:4} {check.name}: {check.words}")
    if not report.ok:
        raise SystemExit(1)
