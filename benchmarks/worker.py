"""The child's side of a contender: obeys one JSON command per line, answers with one JSON line.

Only the standard library, because it also runs inside the peers' environments. Whatever a peer
prints goes to standard error; standard output carries answers and nothing else.
"""

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from typing import Any

Config = dict[str, Any]
Answer = dict[str, Any]
Commands = dict[str, Callable[[Config], Answer]]


def serve(open_contender: Callable[[Config], Commands]) -> None:
    """Read the config from ``argv[1]``, open the contender and obey until ``stop`` or end of input.

    Every answer has ``ok``; a failed one has ``error``, a finished one ``peak_rss_bytes`` too.

    Args:
        open_contender: Takes the config, imports the library and returns what it can do: a function
            for each command. It may return a ``"hello"`` command, answered once at the start.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    commands: Commands = {}

    def answer(work: Callable[[], Answer]) -> bool:
        try:
            result = work()
        except BaseException as error:  # whatever a library raises is the table's to report
            traceback.print_exc()
            answers.write(json.dumps({"ok": False, "error": _one_line(error)}) + "\n")
            return False
        answers.write(json.dumps({"ok": True, "peak_rss_bytes": peak_rss_bytes(), **result}) + "\n")
        return True

    def start() -> Answer:
        commands.update(open_contender(json.loads(sys.argv[1])))
        return commands.pop("hello", lambda _: {})({})

    if not answer(start):
        return
    for line in sys.stdin:
        message = json.loads(line)
        if message["do"] == "stop":
            answer(lambda: {})
            break
        work = commands[message.pop("do")]
        answer(lambda work=work, message=message: work(message))
    answers.flush()
    sys.stderr.flush()
    # A library's background threads and actors must not hold the benchmark up.
    os._exit(0)


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far (Linux counts it in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]
