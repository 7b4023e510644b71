"""The command line of ``launch``: runs on machines, whichever they are.

A verb's module is imported when the verb is used: `launch --help` must not be felt, and which verb
needs what (storage, an engine, a service) is that verb's business.
"""

import importlib

import click

from pipeline.cli.process import run_command

# verb: (module and name of its command, what --help says of it)
VERBS = {
    "local": ("launchers.local.command:local", "Train in a container on this machine."),
    "vast": ("launchers.vast.command:vast", "Rent a GPU at Vast.ai and train on it."),
    "kaggle": ("launchers.kaggle.command:kaggle", "Train in Kaggle's sessions with two T4s."),
    "colab": ("launchers.colab.command:colab", "Write a notebook that trains on Colab."),
    "plan": ("launchers.plan_command:plan", "Say what a run would take on each target."),
    "ps": ("launchers.ps:ps", "Show what runs, and what it costs; 3 if something bills idly."),
    "logs": ("launchers.verbs:logs", "Show what a run has printed."),
    "watch": ("launchers.verbs:watch", "See to a launch from here: replace, finish, tidy up."),
    "stop": ("launchers.verbs:stop", "Let a run save all and end; nothing of it bills."),
    "pull": ("launchers.verbs:pull", "Fetch what a run has made."),
    "reap": ("launchers.reap:reap", "Destroy every machine that bills without a run."),
}


class Verbs(click.Group):
    """A group that knows its verbs' names and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, said) for name, (_, said) in VERBS.items()])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ignite-llm")
def cli() -> None:
    """Train on machines other than this one, or in a container, and see what trains where.

    To train on this machine without a container: pipeline run --help.

    \b
    launch plan --size large                        where could it run, how long, for how much?
    launch local --size small --data corpus.txt     train in a container on this machine
    launch vast --size large --store s3://me/run    rent a GPU, with a cap on what it costs
    launch kaggle --size small                      Kaggle's two T4s, session after session
    launch colab --size small --store s3://me/run   a notebook that goes on where it was
    launch ps                                       what runs, how far it is, and what bills
    launch stop                                     save all, and stop
    """


def main() -> None:
    """Entry point."""
    run_command(cli, "launch")
