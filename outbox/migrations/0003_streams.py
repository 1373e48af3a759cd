from django.db import migrations, models

from outbox.migrations.sql import read


class Migration(migrations.Migration):
    dependencies = [("outbox", "0002_retention")]

    operations = [
        migrations.CreateModel(
            name="StreamMessage",
            fields=[
                (
                    "position",
                    models.BigIntegerField(
                        primary_key=True, serialize=False, verbose_name="position"
                    ),
                ),
                ("channel", models.CharField(max_length=63, verbose_name="channel")),
                ("key", models.TextField(verbose_name="key")),
                ("version", models.BigIntegerField(verbose_name="version")),
            ],
            options={
                "verbose_name": "stream message",
                "verbose_name_plural": "stream messages",
                "db_table": "outbox_stream_message",
                "constraints": [
                    models.UniqueConstraint(
                        fields=["channel", "key", "version"], name="outbox_stream_once"
                    )
                ],
            },
        ),
        migrations.RunSQL(
            sql=read("00_names.sql", "streams.sql", "09_names.sql"),
            reverse_sql=read("streams_drop.sql"),
        ),
    ]
