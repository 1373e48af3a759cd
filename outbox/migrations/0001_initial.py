import django.db.models.expressions
import django.db.models.functions.comparison
import django.db.models.functions.datetime
import pgtrigger.compiler
import pgtrigger.migrations
from django.db import migrations, models

import outbox.models
import outbox.triggers
from outbox.migrations.sql import read


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        # The log's trigger looks for streams, also when the next migration run publishes.
        migrations.CreateModel(
            name="Stream",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "channel",
                        "key",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("channel", models.CharField(max_length=63, verbose_name="channel")),
                ("key", models.TextField(verbose_name="key")),
                ("version", models.BigIntegerField(verbose_name="version")),
            ],
            options={
                "verbose_name": "stream",
                "verbose_name_plural": "streams",
                "db_table": "outbox_stream",
            },
        ),
        migrations.CreateModel(
            name="OperatorAction",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="at"
                    ),
                ),
                ("actor", models.TextField(verbose_name="actor")),
                ("action", models.TextField(verbose_name="action")),
                ("group", models.CharField(max_length=63, verbose_name="group")),
                ("details", models.JSONField(default=dict, verbose_name="details")),
            ],
            options={
                "verbose_name": "operator action",
                "verbose_name_plural": "operator actions",
                "db_table": "outbox_operator_action",
                "ordering": ["-id"],
            },
        ),
        migrations.CreateModel(
            name="ParkedMessage",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("group", models.CharField(max_length=63, verbose_name="group")),
                ("channel", models.CharField(max_length=63, verbose_name="channel")),
                ("position", models.BigIntegerField(verbose_name="position")),
                ("key", models.TextField(null=True, verbose_name="key")),
                ("slot", models.SmallIntegerField(verbose_name="slot")),
                ("type", models.TextField(verbose_name="type")),
                ("payload", outbox.models.PayloadField(verbose_name="payload")),
                ("headers", models.JSONField(verbose_name="headers")),
                ("created_at", models.DateTimeField(verbose_name="created at")),
                ("replayed", models.BooleanField(db_default=False, verbose_name="replayed")),
                (
                    "reason",
                    models.TextField(
                        choices=[
                            ("failed", "failed"),
                            ("undecodable", "undecodable"),
                            ("unknown", "of a type that the code does not know"),
                            ("blocked", "blocked by an earlier message of its key"),
                        ],
                        verbose_name="reason",
                    ),
                ),
                ("attempts", models.IntegerField(db_default=0, verbose_name="failed attempts")),
                ("error_class", models.TextField(db_default="", verbose_name="error class")),
                ("error", models.TextField(db_default="", verbose_name="error")),
                ("traceback", models.TextField(db_default="", verbose_name="traceback")),
                ("first_failed_at", models.DateTimeField(null=True, verbose_name="first failure")),
                ("last_failed_at", models.DateTimeField(null=True, verbose_name="last failure")),
                (
                    "parked_at",
                    models.DateTimeField(
                        db_default=outbox.models.ClockTimestamp(), verbose_name="parked at"
                    ),
                ),
            ],
            options={
                "verbose_name": "parked message",
                "verbose_name_plural": "parked messages",
                "db_table": "outbox_parked_message",
            },
        ),
        migrations.CreateModel(
            name="Cursor",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("group", models.CharField(max_length=63, verbose_name="group")),
                ("channel", models.CharField(max_length=63, verbose_name="channel")),
                ("slot_from", models.SmallIntegerField(verbose_name="first slot")),
                ("slot_to", models.SmallIntegerField(verbose_name="last slot")),
                ("position", models.BigIntegerField(verbose_name="position")),
                ("generation", models.IntegerField(db_default=0, verbose_name="generation")),
                ("counted_from", models.BigIntegerField(verbose_name="counted from")),
                (
                    "max_position",
                    models.BigIntegerField(verbose_name="highest position ever reached"),
                ),
                ("processed", models.BigIntegerField(db_default=0, verbose_name="processed")),
                ("skipped", models.BigIntegerField(db_default=0, verbose_name="skipped")),
                ("parked", models.BigIntegerField(db_default=0, verbose_name="parked")),
                ("rate", models.FloatField(db_default=0.0, verbose_name="messages per second")),
                ("attempts", models.IntegerField(db_default=0, verbose_name="failed attempts")),
                (
                    "failed_position",
                    models.BigIntegerField(
                        null=True, verbose_name="position of the failed message"
                    ),
                ),
                ("failed_since", models.DateTimeField(null=True, verbose_name="failed since")),
                ("retry_at", models.DateTimeField(null=True, verbose_name="retry at")),
                ("last_error", models.TextField(db_default="", verbose_name="last error")),
                ("paused_until", models.DateTimeField(null=True, verbose_name="paused until")),
                (
                    "hold_position",
                    models.BigIntegerField(null=True, verbose_name="held at position"),
                ),
                ("hold_until", models.DateTimeField(null=True, verbose_name="held until")),
                ("lease_token", models.BigIntegerField(db_default=0, verbose_name="fencing token")),
                ("leased_until", models.DateTimeField(null=True, verbose_name="leased until")),
                ("leased_by", models.TextField(db_default="", verbose_name="leased by")),
                (
                    "last_served_at",
                    models.DateTimeField(
                        db_default=outbox.models.ClockTimestamp(), verbose_name="last claimed"
                    ),
                ),
                (
                    "last_commit_at",
                    models.DateTimeField(
                        db_default=outbox.models.ClockTimestamp(), verbose_name="last commit"
                    ),
                ),
            ],
            options={
                "verbose_name": "cursor",
                "verbose_name_plural": "cursors",
                "db_table": "outbox_cursor",
                "constraints": [
                    models.UniqueConstraint(
                        fields=("group", "channel", "slot_from"), name="outbox_cursor_range"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("slot_from__gte", 0), ("slot_from__lte", models.F("slot_to"))
                        ),
                        name="outbox_cursor_slots",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Snapshot",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("model", models.TextField(verbose_name="model")),
                ("channel", models.CharField(max_length=63, verbose_name="channel")),
                ("conditions", models.TextField(db_default="", verbose_name="conditions")),
                ("last_key", models.JSONField(null=True, verbose_name="last primary key")),
                ("emitted", models.BigIntegerField(db_default=0, verbose_name="emitted messages")),
                (
                    "started_at",
                    models.DateTimeField(
                        db_default=outbox.models.ClockTimestamp(), verbose_name="started at"
                    ),
                ),
                (
                    "last_commit_at",
                    models.DateTimeField(
                        db_default=outbox.models.ClockTimestamp(), verbose_name="last commit"
                    ),
                ),
                ("finished_at", models.DateTimeField(null=True, verbose_name="finished at")),
            ],
            options={
                "verbose_name": "snapshot",
                "verbose_name_plural": "snapshots",
                "db_table": "outbox_snapshot",
                "constraints": [
                    models.UniqueConstraint(
                        fields=("model", "channel"), name="outbox_snapshot_once"
                    )
                ],
            },
        ),
        migrations.AddIndex(
            model_name="parkedmessage",
            index=models.Index(
                fields=["group", "channel", "slot", "position"], name="outbox_parked_by_slot"
            ),
        ),
        migrations.AddConstraint(
            model_name="parkedmessage",
            constraint=models.UniqueConstraint(
                fields=("group", "position"), name="outbox_parked_once"
            ),
        ),
        migrations.RunSQL(
            sql="ALTER TABLE outbox_cursor SET (fillfactor = 50)",
            reverse_sql=migrations.RunSQL.noop,
        ),
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(sql=read("0*.sql"), reverse_sql=read("drop.sql"))
            ],
            state_operations=[
                migrations.CreateModel(
                    name="Message",
                    fields=[
                        (
                            "position",
                            models.BigAutoField(
                                primary_key=True, serialize=False, verbose_name="position"
                            ),
                        ),
                        (
                            "created_at",
                            models.DateTimeField(
                                db_default=outbox.models.ClockTimestamp(),
                                editable=False,
                                verbose_name="created at",
                            ),
                        ),
                        (
                            "slot",
                            models.GeneratedField(
                                db_persist=True,
                                expression=django.db.models.functions.comparison.Coalesce(
                                    django.db.models.expressions.CombinedExpression(
                                        models.Func(
                                            models.F("key"),
                                            models.Value(0),
                                            function="hashtextextended",
                                        ),
                                        "&",
                                        models.Value(32767),
                                    ),
                                    models.Value(0),
                                ),
                                output_field=models.SmallIntegerField(),
                            ),
                        ),
                        ("channel", models.CharField(max_length=63, verbose_name="channel")),
                        ("key", models.TextField(blank=True, null=True, verbose_name="key")),
                        ("type", models.TextField(verbose_name="type")),
                        ("payload", outbox.models.PayloadField(verbose_name="payload")),
                        ("headers", models.JSONField(default=dict, verbose_name="headers")),
                    ],
                    options={
                        "verbose_name": "message",
                        "verbose_name_plural": "messages",
                        "db_table": "outbox_message",
                        "indexes": [
                            models.Index(
                                fields=["channel", "position", "slot"],
                                name="outbox_message_by_channel",
                            )
                        ],
                    },
                ),
            ],
        ),
        pgtrigger.migrations.AddTrigger(
            model_name="message",
            trigger=pgtrigger.compiler.Trigger(
                name="take_floor",
                sql=outbox.triggers.LogTriggerSql(
                    execute="outbox_take_floor()",
                    func="",
                    hash="78820c1cc127204f07d0534adfab9abf7711efd3",
                    level="STATEMENT",
                    operation="INSERT",
                    pgid="pgtrigger_take_floor_8b656",
                    table="outbox_message",
                    when="BEFORE",
                ),
            ),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name="message",
            trigger=pgtrigger.compiler.Trigger(
                name="check_positions_and_notify",
                sql=outbox.triggers.LogTriggerSql(
                    execute="outbox_check_positions_and_notify()",
                    func="",
                    hash="fbddd7b776a60fcc35e7eca8478164d8ee77b80d",
                    level="STATEMENT",
                    operation="INSERT",
                    pgid="pgtrigger_check_positions_and_notify_1c8fe",
                    referencing="REFERENCING NEW TABLE AS appended ",
                    table="outbox_message",
                    when="AFTER",
                ),
            ),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name="message",
            trigger=pgtrigger.compiler.Trigger(
                name="append_only",
                sql=outbox.triggers.LogTriggerSql(
                    execute="outbox_forbid_changes()",
                    func="",
                    hash="7bae238d1f4ca337e97483ee181bea3342e74565",
                    level="STATEMENT",
                    operation="UPDATE OR DELETE OR TRUNCATE",
                    pgid="pgtrigger_append_only_3348c",
                    table="outbox_message",
                    when="BEFORE",
                ),
            ),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name="cursor",
            trigger=pgtrigger.compiler.Trigger(
                name="check_position",
                sql=outbox.triggers.LogTriggerSql(
                    execute="outbox_check_cursor()",
                    func="",
                    hash="33504ddda074ffc9da93663c4ce88cd95b70d450",
                    operation='INSERT OR UPDATE OF "position"',
                    pgid="pgtrigger_check_position_411b6",
                    table="outbox_cursor",
                    when="BEFORE",
                ),
            ),
        ),
    ]
