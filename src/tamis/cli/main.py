"""The ``tamis`` command: its verbs and nothing else."""

import typer

from tamis.cli.compare import compare
from tamis.cli.evaluate import evaluate
from tamis.cli.ingest import ingest
from tamis.cli.predict import predict
from tamis.cli.quickstart import quickstart
from tamis.cli.report import report
from tamis.cli.reproduce import reproduce
from tamis.cli.simulate import simulate
from tamis.cli.train import train

app = typer.Typer(
    name="tamis",
    help="From raw interaction logs to a measured ads-ranking funnel.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _verb in (
    quickstart,
    simulate,
    ingest,
    train,
    evaluate,
    predict,
    compare,
    report,
    reproduce,
):
    app.command()(_verb)


def run() -> None:
    """Entry point of the console script."""
    app()
