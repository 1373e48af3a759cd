"""A relay of the flights in a process of its own: `python -m tests.relays.relay_worker SINK [stay]`.

It ends when it has sent everything, or, with `stay`, on SIGTERM.
"""

from __future__ import annotations

import logging
import signal
import sys

import django

if __name__ == "__main__":
    django.setup()

    import outbox
    from outbox import relays
    from outbox.worker import Worker

    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    sink = eval(sys.argv[1], {"relays": relays})
    worker = Worker([outbox.Relay("flown", channels=["flights"], to=sink, lease=1.0)])
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run(until_idle="stay" not in sys.argv)
