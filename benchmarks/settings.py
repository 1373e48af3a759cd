"""The Django settings of the benchmarks; the harness sets DATABASE_URL."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from outbox.embedded import database_from_url

NAME = "outbox_benchmarks"

SECRET_KEY = "the benchmarks have no secrets"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "pgtrigger", "outbox", "benchmarks"]
if importlib.util.find_spec("pgpubsub"):
    INSTALLED_APPS.append("pgpubsub")
OUTBOX: dict[str, Any] = {}
DATABASES = {"default": {**database_from_url(os.environ["DATABASE_URL"]), "NAME": NAME}}
