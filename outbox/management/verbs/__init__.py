"""The verbs of `manage.py outbox`, each a thin layer over a function of the package."""

from __future__ import annotations

from .changes import Pause, Reset, Resume, Scale, Skip
from .repairs import Discard, Parked, Redrive, Segments
from .snapshots import TakeSnapshot
from .verb import Verb
from .views import Audit, Check, Describe, Doctor, Groups, Tail

VERBS: list[type[Verb]] = [
    Groups,
    Describe,
    Check,
    Tail,
    Audit,
    Doctor,
    Reset,
    Pause,
    Resume,
    Skip,
    Scale,
    Parked,
    Redrive,
    Discard,
    Segments,
    TakeSnapshot,
]
"""In the order of the help."""
