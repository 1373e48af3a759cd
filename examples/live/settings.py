"""The settings of the example: a database `live`, the outbox, and one page."""

import os

ALLOWED_HOSTS = ["*"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ.get("LIVE_DATABASE", "live"),
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["pgtrigger", "outbox"]
ROOT_URLCONF = "pages"
SECRET_KEY = "an example has no secrets"
USE_TZ = True
