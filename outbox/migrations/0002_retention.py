from django.db import migrations, models

import outbox.models
from outbox.migrations.sql import read


class Migration(migrations.Migration):
    dependencies = [("outbox", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="ArchivedSegment",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.TextField(verbose_name="file")),
                ("storage", models.TextField(verbose_name="storage alias")),
                ("lower", models.BigIntegerField(verbose_name="first position of the segment")),
                (
                    "upper",
                    models.BigIntegerField(verbose_name="first position after the segment"),
                ),
                ("messages", models.BigIntegerField(verbose_name="messages")),
                ("first_position", models.BigIntegerField(verbose_name="first position")),
                ("last_position", models.BigIntegerField(verbose_name="last position")),
                (
                    "checksum",
                    models.TextField(verbose_name="SHA-256 of its messages as JSON lines"),
                ),
                ("file_checksum", models.TextField(verbose_name="SHA-256 of the file")),
                (
                    "archived_at",
                    models.DateTimeField(
                        db_default=outbox.models.ClockTimestamp(), verbose_name="archived at"
                    ),
                ),
                (
                    "restored_until",
                    models.DateTimeField(null=True, verbose_name="restored, and kept until"),
                ),
                (
                    "is_obsolete",
                    models.BooleanField(db_default=False, verbose_name="its file is to be deleted"),
                ),
            ],
            options={
                "verbose_name": "archived segment",
                "verbose_name_plural": "archived segments",
                "db_table": "outbox_archived_segment",
                "ordering": ["first_position"],
            },
        ),
        migrations.CreateModel(
            name="ChannelRetention",
            fields=[
                (
                    "channel",
                    models.CharField(
                        max_length=63, primary_key=True, serialize=False, verbose_name="channel"
                    ),
                ),
                (
                    "removed_to",
                    models.BigIntegerField(verbose_name="removed up to position"),
                ),
            ],
            options={
                "verbose_name": "channel retention",
                "verbose_name_plural": "channel retentions",
                "db_table": "outbox_channel_retention",
            },
        ),
        migrations.CreateModel(
            name="Maintenance",
            fields=[
                ("id", models.SmallIntegerField(primary_key=True, serialize=False)),
                ("succeeded_at", models.DateTimeField(null=True, verbose_name="succeeded at")),
                ("failed_at", models.DateTimeField(null=True, verbose_name="failed at")),
                ("error", models.TextField(blank=True, verbose_name="error")),
            ],
            options={
                "verbose_name": "maintenance",
                "verbose_name_plural": "maintenances",
                "db_table": "outbox_maintenance",
            },
        ),
        migrations.RunSQL(
            sql=read("00_names.sql", "retention.sql", "09_names.sql"),
            reverse_sql=read("retention_drop.sql"),
        ),
    ]
