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
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "pgtrigger",
    "outbox",
    "benchmarks",
]
if importlib.util.find_spec("pgpubsub"):
    INSTALLED_APPS.append("pgpubsub")
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = "benchmarks.control_room"
ALLOWED_HOSTS = ["testserver"]
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
OUTBOX: dict[str, Any] = {}
DATABASES = {"default": {**database_from_url(os.environ["DATABASE_URL"]), "NAME": NAME}}
