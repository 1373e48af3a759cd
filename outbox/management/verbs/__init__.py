"""The verbs of `manage.py outbox`, a file per module of `operations`, `retention` or `changes`."""

from __future__ import annotations

from .audit import Audit
from .doctor import Doctor
from .erasures import Erase, Restore
from .events import Events
from .forgetting import Forget
from .grants import Grants
from .monitoring import Exporter, Monitoring
from .pauses import Pause, Resume
from .rebuild import Rebuild
from .redrives import Discard, Parked, Redrive
from .relays import Relay
from .replay import Reset, Skip
from .scaling import Scale
from .segments import Segments
from .snapshot import TakeSnapshot
from .status import Check, Describe, Groups
from .tail import Tail
from .verb import Verb

VERBS: list[type[Verb]] = [
    Groups,
    Describe,
    Check,
    Tail,
    Audit,
    Doctor,
    Grants,
    Reset,
    Pause,
    Resume,
    Skip,
    Scale,
    Forget,
    Parked,
    Redrive,
    Discard,
    Segments,
    Restore,
    Erase,
    TakeSnapshot,
    Rebuild,
    Events,
    Exporter,
    Monitoring,
    Relay,
]
"""In the order of the help."""
