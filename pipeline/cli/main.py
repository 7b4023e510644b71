"""The command line: verbs for people and programs. Heavy libraries load only where they work."""

import os

import click

from pipeline.cli import care, metrics, preflight, runs, stop, stores
from pipeline.cli.process import run_command
from pipeline.machine import REST

VERBS = (
    *(runs.run, runs.status, runs.explain_stage, runs.graph, runs.log_stage, runs.sizes),
    *(metrics.metrics, stop.stop, runs.sample, runs.generate, runs.report),
    *(stores.push, stores.pull, stores.accept, stores.adopt, care.gc, care.verify),
    preflight.preflight,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ignite-llm")
def cli() -> None:
    """Train a language model from raw text to samples, and never lose a step.

    \b
    pipeline run --size tiny --data tinyshakespeare     train, evaluate, sample
    pipeline run                                        go on with the last run
    pipeline status                                     how far is it?
    pipeline explain train                              why does it run (again)?
    pipeline generate --prompt "ROMEO:"                 write with the trained model
    """


for verb in VERBS:
    cli.add_command(verb)


def main() -> None:
    """Entry point: errors that a user can mend are one message, without a traceback."""
    if not os.environ.keys() & {"OMP_WAIT_POLICY", *REST}:
        os.environ.update(REST)
    run_command(cli, "pipeline")
