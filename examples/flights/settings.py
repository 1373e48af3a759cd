"""The smallest settings that run the example: one Postgres database, the outbox, one app."""

import os

from outbox import embedded

DATABASES = {
    "default": embedded.database_from_url(os.environ.get("DATABASE_URL", "postgresql:///flights")),
}
INSTALLED_APPS = ["pgtrigger", "outbox", "flights"]

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "an example has no secrets"
TIME_ZONE = "America/New_York"
USE_TZ = True
