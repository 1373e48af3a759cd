"""The settings of the bank: one Postgres database, the outbox, one app."""

import os

from outbox import embedded

DATABASES = {
    "default": embedded.database_from_url(os.environ.get("DATABASE_URL", "postgresql:///bank")),
}
INSTALLED_APPS = ["pgtrigger", "outbox", "bank"]

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "an example has no secrets"
USE_TZ = True
