"""The settings of the blog; PYTHONPATH says in which of its two versions."""

import os

from outbox.embedded import database_from_url

SECRET_KEY = "the blog has no secrets"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = os.environ["BLOG_APPS"].split()
DATABASES = {"default": database_from_url(os.environ["DATABASE_URL"])}
DATABASES["default"]["NAME"] = os.environ["BLOG_DATABASE"]
