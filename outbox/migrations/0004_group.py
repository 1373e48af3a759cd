from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("outbox", "0003_streams")]

    operations = [
        migrations.CreateModel(
            name="Group",
            fields=[],
            options={
                "verbose_name": "consumer group",
                "verbose_name_plural": "consumer groups",
                "permissions": [
                    ("operate_group", "Can pause and resume a consumer group"),
                    ("scale_group", "Can scale a consumer group"),
                    ("reset_group", "Can reset a consumer group"),
                    ("skip_message", "Can skip a message of a consumer group"),
                    ("redrive_message", "Can redrive parked messages"),
                    ("discard_message", "Can discard parked messages"),
                    ("forget_group", "Can forget a consumer group"),
                    ("end_session", "Can end a session that holds the horizon back"),
                ],
                "proxy": True,
                "default_permissions": ("view",),
                "indexes": [],
                "constraints": [],
            },
            bases=("outbox.cursor",),
        ),
    ]
