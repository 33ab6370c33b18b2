"""The ``tamis`` command: its verbs and nothing else."""

import importlib.metadata
import time
from typing import Annotated, Any

import typer
import typer.core

from tamis.cli.ab_test import ab_test
from tamis.cli.cascade import cascade
from tamis.cli.compare import compare
from tamis.cli.console import print_failure
from tamis.cli.evaluate import evaluate
from tamis.cli.export import export
from tamis.cli.ingest import ingest
from tamis.cli.predict import predict
from tamis.cli.publish import publish
from tamis.cli.quickstart import quickstart
from tamis.cli.refresh import refresh
from tamis.cli.replay import replay
from tamis.cli.report import report
from tamis.cli.reproduce import reproduce
from tamis.cli.serve import serve
from tamis.cli.settings import settings
from tamis.cli.simulate import simulate
from tamis.cli.train import train


class _Verbs(typer.core.TyperGroup):
    """The group of verbs; beside ``--json`` wrong usage is an object on standard output too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Take the group's own options, and remember all arguments."""
        ctx.meta["tamis.started"] = time.perf_counter()
        ctx.meta["tamis.arguments"] = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            self._report(ctx, error)
            raise

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            self._report(ctx, error)
            raise

    def _report(self, ctx: Any, error: Exception) -> None:  # noqa: ANN401
        arguments = ctx.meta["tamis.arguments"]
        # Newer typer has click's exceptions of its own; what they share is this method.
        say = getattr(error, "format_message", None)
        if say is None or "--json" not in arguments:
            return
        verb = next((word for word in arguments if word in self.commands), "")
        seconds = round(time.perf_counter() - ctx.meta["tamis.started"], 3)
        print_failure(verb, say(), seconds=seconds)


app = typer.Typer(
    name="tamis",
    cls=_Verbs,
    help="From raw interaction logs to a measured ads-ranking funnel.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"tamis {importlib.metadata.version('tamis')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    del version  # its callback has printed it


for _verb in (
    quickstart,
    simulate,
    ingest,
    settings,
    train,
    evaluate,
    predict,
    compare,
    publish,
    cascade,
    replay,
    ab_test,
    serve,
    refresh,
    export,
    report,
    reproduce,
):
    app.command()(_verb)


def run() -> None:
    """Entry point of the console script."""
    app()
