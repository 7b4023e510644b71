"""The command line of ``launch``: runs on machines, whichever they are."""

import click

from launchers.kaggle.command import kaggle
from launchers.local.command import local
from launchers.plan_command import command as plan
from launchers.ps import ps
from launchers.vast.command import vast
from launchers.verbs import logs, pull, reap, stop, watch
from pipeline.cli.process import run_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ignite-llm")
def cli() -> None:
    """Train on machines other than this one, or in a container, and see what trains where.

    To train on this machine without a container: pipeline run --help.

    \b
    launch local --size small --data corpus.txt     train in a container on this machine
    launch vast --size large --store s3://me/run    rent a GPU, with a cap on what it costs
    launch kaggle --size small                      Kaggle's two T4s, session after session
    launch ps                                       what runs, how far it is, and what bills
    launch stop                                     save all, and stop
    """


for command in (local, vast, kaggle, plan(), ps, logs, stop, watch, pull, reap):
    cli.add_command(command)


def main() -> None:
    """Entry point."""
    run_command(cli, "launch")
