"""Search all models: `make proof`. Exit code 0: each property holds, each mutant is caught."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable

from tests.model import claims, streams, visibility, wakeup
from tests.model.search import Result

Run = Callable[[str], Result]

MODELS: list[tuple[str, Run, dict[str, str]]] = [
    (visibility.PROPERTY, visibility.run, visibility.MUTANTS),
    (wakeup.PROPERTY, wakeup.run, wakeup.MUTANTS),
    (
        claims.EXACTLY_ONCE,
        functools.partial(claims.run, "exactly once"),
        claims.MUTANTS["exactly once"],
    ),
    (claims.LEASED, functools.partial(claims.run, "leased"), claims.MUTANTS["leased"]),
    (streams.PROPERTY, streams.run, streams.MUTANTS),
]


def main(show_traces: bool) -> int:
    """Print a line for each property and each mutant; return the exit code."""
    failed = 0
    for text, run, mutants in MODELS:
        began = time.monotonic()
        result = run("")
        seconds = time.monotonic() - began
        failed += bool(result.wrong)
        verdict = f"BROKEN: {result.wrong}" if result.wrong else "holds"
        print(f"{text}\n    {result.states} states, {seconds:.1f} s: {verdict}")
        for step in result.trace:
            print(f"        {step}")
        for mutant, meaning in mutants.items():
            caught = run(mutant)
            failed += not caught.wrong
            verdict = f"counterexample of {len(caught.trace)} steps: {caught.wrong}"
            print(f"    mutant, {meaning}: {verdict if caught.wrong else 'NOT CAUGHT'}", flush=True)
            for step in caught.trace if show_traces else ():
                print(f"        {step}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main("--traces" in sys.argv))
