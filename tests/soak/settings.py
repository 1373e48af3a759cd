"""The Django settings of the rack's project; the rack names the database in the environment."""

from __future__ import annotations

import json
import os
from typing import Any

SECRET_KEY = "the rack has no secrets"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "pgtrigger",
    "outbox",
    "tests.library",
    "tests.bank",
    "tests.soak",
]
OUTBOX: dict[str, Any] = {
    "BATCH_SIZE": 60,
    "POLL_INTERVAL": 2.0,
    "CHANNELS": {"quotes": {"keep": "10 seconds"}},
    "OPERATOR": "rack",
}
DATABASES: dict[str, Any] = {"default": json.loads(os.environ.get("SOAK_DATABASE", "{}"))}
DATABASES["default"].setdefault("OPTIONS", {})
DATABASES["default"]["OPTIONS"].setdefault("application_name", f"soak:{os.getpid()}")
LOGGING = {
    "version": 1,
    "formatters": {
        "line": {"format": "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"}
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {"outbox": {"handlers": ["stderr"], "level": "INFO"}},
}
