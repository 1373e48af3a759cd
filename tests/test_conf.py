"""The settings: one dict, all keys optional."""

from __future__ import annotations

import math

import pytest
from django.test import override_settings

from outbox.conf import ALLOWED, Settings, is_number, settings


def test_every_key_is_optional():
    """Without OUTBOX the defaults hold, and each default is an allowed value."""
    with override_settings(OUTBOX={}):
        assert settings() == Settings()
    for key, (is_allowed, _) in ALLOWED.items():
        assert is_allowed(getattr(Settings(), key.lower())), key


def test_every_key_has_a_rule():
    """The system check knows what each key may be."""
    assert sorted(ALLOWED) == sorted(Settings.keys())


def test_given_keys_replace_defaults():
    """Also when the setting changes while the process runs, as in tests."""
    with override_settings(OUTBOX={"BATCH_SIZE": 7, "LISTEN": False}):
        assert (settings().batch_size, settings().listen) == (7, False)
        assert settings().batch_seconds == Settings().batch_seconds
        with override_settings(OUTBOX={"BATCH_SIZE": 8}):
            assert settings() == Settings(batch_size=8)
    assert settings().batch_size == Settings().batch_size


def test_unknown_keys_do_no_harm_at_run_time():
    """The system check refuses them; a process that runs anyway has the other keys."""
    with override_settings(OUTBOX={"BATCHSIZE": 7, "LINGER": 0}):
        assert settings() == Settings(linger=0)


@pytest.mark.parametrize(
    ("value", "limits", "is_allowed"),
    [
        (1, {"least": 1}, True),
        (0, {"least": 1}, False),
        (0, {"least": 0, "is_above": True}, False),
        (0.1, {"least": 0, "is_above": True}, True),
        (1.5, {"least": 1, "whole": True}, False),
        (6, {"least": 1, "most": 5}, False),
        (math.nan, {"least": 0}, False),
        (math.inf, {"least": 0}, False),
        (True, {"least": 0}, False),
        ("1", {"least": 0}, False),
        (None, {"least": 0}, False),
    ],
)
def test_what_counts_as_a_number(value, limits, is_allowed):
    """Finite, within the limits, and neither text nor a truth value."""
    assert is_number(value, **limits) is is_allowed
