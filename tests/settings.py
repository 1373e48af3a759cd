"""The Django settings of the test project."""

from __future__ import annotations

import json
import os
from typing import Any

from outbox.embedded import database_from_url
from tests.support.server import database_url

SECRET_KEY = "the tests have no secrets"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "pgtrigger",
    "outbox",
    "tests.shop",
    "tests.library",
    "tests.bank",
]
SILENCED_SYSTEM_CHECKS = ["postgres.E005"]
"""Fields of django.contrib.postgres without its lookups; Django 6.1 wants the app for them."""
OUTBOX: dict[str, Any] = json.loads(os.environ.get("OUTBOX_TEST_SETTINGS", "{}"))

DATABASES = {"default": database_from_url(database_url())}
if name := os.environ.get("OUTBOX_TEST_DB"):
    DATABASES["default"]["NAME"] = name
