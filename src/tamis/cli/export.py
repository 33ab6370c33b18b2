"""``tamis export``: a run's model for other servers."""

from pathlib import Path
from typing import Annotated

import typer

from tamis.cli.console import Debug, Json, Threads, session
from tamis.cli.extras import needs_extra


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    *,
    onnx: Annotated[Path, typer.Option(help="File to write; what encodes its inputs lies beside.")],
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a model as an ONNX file, checked to give the same predictions."""
    with session("export", as_json=as_json, debug=debug) as current:
        with needs_extra("onnx"):
            import onnxruntime  # noqa: F401  (asked for now, not after the work)
            import onnxscript  # noqa: F401
        from tamis.exporting.onnx_file import export_onnx
        from tamis.process import prepare_process

        prepare_process(threads)
        made = export_onnx(run, onnx)
        current.say(f"wrote {made.path} and what encodes its inputs to {made.path}.inputs")
        current.say(
            f"inputs: {', '.join(made.inputs)}; predictions: {', '.join(made.tasks)}; ONNX Runtime "
            f"differs from PyTorch by {made.difference:.1e} at most"
        )
        current.finish(
            out=made.path, inputs=made.inputs, tasks=made.tasks, difference=made.difference
        )
