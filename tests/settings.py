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
    "django.contrib.admin",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
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
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = "tests.urls"
ALLOWED_HOSTS = ["testserver", "localhost", "127.0.0.1"]
STATIC_URL = "static/"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
OUTBOX: dict[str, Any] = {
    "BATCH_SECONDS": 60.0,  # a batch ends by its size, however slow the machine is
    **json.loads(os.environ.get("OUTBOX_TEST_SETTINGS", "{}")),
}

DATABASES = {"default": database_from_url(database_url())}
if name := os.environ.get("OUTBOX_TEST_DB"):
    DATABASES["default"]["NAME"] = name
