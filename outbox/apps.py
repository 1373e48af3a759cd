"""Django's entry point: system checks, and the events and consumers of every app."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate, pre_migrate
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class OutboxConfig(AppConfig):
    name = "outbox"
    label = "outbox"
    verbose_name = _("Outbox")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register checks and receivers; import the `events` and `consumers` of each app."""
        from . import headers
        from .changes import installed
        from .checks import databases, declarations  # noqa: F401
        from .database import use_iso_dates
        from .retention import rules  # noqa: F401

        connection_created.connect(use_iso_dates)
        connection_created.connect(headers.watch)
        pre_migrate.connect(installed.keep_log, sender=self)
        post_migrate.connect(installed.install_unmanaged, sender=self)
        _attach_tracers()
        autodiscover_modules("events")
        autodiscover_modules("consumers")


def _attach_tracers() -> None:
    """Import and attach what the settings ask for; raises MissingExtra."""
    from .conf import settings
    from .exceptions import MissingExtra

    try:
        if settings().tracing in ("links", "parent"):
            from .monitoring import tracing

            tracing.attach(settings().tracing)
        if settings().sentry is True:
            from .monitoring import sentry

            sentry.attach()
    except ModuleNotFoundError as error:
        extra = "sentry" if (error.name or "").startswith("sentry") else "otel"
        raise MissingExtra(extra=extra, module=error.name or "") from error
