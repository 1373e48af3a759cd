from django.apps import AppConfig


class ShopConfig(AppConfig):
    name = "tests.shop"
    label = "shop"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self):
        """A worker that died is restarted soon: many tests kill workers again and again."""
        from outbox.processes import supervisor

        supervisor.FIRST_DELAY, supervisor.LONGEST_DELAY = 0.02, 0.1
