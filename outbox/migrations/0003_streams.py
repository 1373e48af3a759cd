from django.db import migrations, models

from outbox.migrations.sql import read


class Migration(migrations.Migration):
    dependencies = [("outbox", "0002_retention")]

    operations = [
        migrations.CreateModel(
            name="StreamMessage",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "channel",
                        "key",
                        "version",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("channel", models.CharField(max_length=63, verbose_name="channel")),
                ("key", models.TextField(verbose_name="key")),
                ("version", models.BigIntegerField(verbose_name="version")),
                ("position", models.BigIntegerField(verbose_name="position")),
            ],
            options={
                "verbose_name": "stream message",
                "verbose_name_plural": "stream messages",
                "db_table": "outbox_stream_message",
            },
        ),
        migrations.RunSQL(
            sql=read("00_names.sql", "streams.sql", "09_names.sql"),
            reverse_sql=read("streams_drop.sql"),
        ),
    ]
