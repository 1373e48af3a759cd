"""How far groups and snapshots are, what groups gave up on, and what operators did."""

from __future__ import annotations

from django.db import models
from django.db.models import F
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from .. import triggers
from .log_model import CHANNEL_LENGTH, GROUP_LENGTH, ClockTimestamp, LogModel, PayloadField


class Cursor(LogModel):
    """A group's position in one channel, for one range of slots; the only lock of that range."""

    group = models.CharField(_("group"), max_length=GROUP_LENGTH)
    channel = models.CharField(_("channel"), max_length=CHANNEL_LENGTH)
    slot_from = models.SmallIntegerField(_("first slot"))
    slot_to = models.SmallIntegerField(_("last slot"))
    position = models.BigIntegerField(_("position"))
    generation = models.IntegerField(_("generation"), db_default=0)
    counted_from = models.BigIntegerField(_("counted from"))
    max_position = models.BigIntegerField(_("highest position ever reached"))
    processed = models.BigIntegerField(_("processed"), db_default=0)
    skipped = models.BigIntegerField(_("skipped"), db_default=0)
    parked = models.BigIntegerField(_("parked"), db_default=0)
    rate = models.FloatField(_("messages per second"), db_default=0.0)
    attempts = models.IntegerField(_("failed attempts"), db_default=0)
    failed_position = models.BigIntegerField(_("position of the failed message"), null=True)
    failed_since = models.DateTimeField(_("failed since"), null=True)
    retry_at = models.DateTimeField(_("retry at"), null=True)
    last_error = models.TextField(_("last error"), db_default="")
    paused_until = models.DateTimeField(_("paused until"), null=True)
    hold_position = models.BigIntegerField(_("held at position"), null=True)
    hold_until = models.DateTimeField(_("held until"), null=True)
    lease_token = models.BigIntegerField(_("fencing token"), db_default=0)
    leased_until = models.DateTimeField(_("leased until"), null=True)
    leased_by = models.TextField(_("leased by"), db_default="")
    last_served_at = models.DateTimeField(_("last claimed"), db_default=ClockTimestamp())
    last_commit_at = models.DateTimeField(_("last commit"), db_default=ClockTimestamp())

    class Meta:
        db_table = "outbox_cursor"
        verbose_name = _("cursor")
        verbose_name_plural = _("cursors")
        constraints = [
            models.UniqueConstraint(
                fields=["group", "channel", "slot_from"], name="outbox_cursor_range"
            ),
            models.CheckConstraint(
                condition=models.Q(slot_from__gte=0, slot_from__lte=F("slot_to")),
                name="outbox_cursor_slots",
            ),
        ]
        triggers = [triggers.CHECK_POSITION]

    def __str__(self) -> str:
        return f"{self.group} {self.channel} {self.slot_from}-{self.slot_to} at {self.position}"


class Group(Cursor):
    """The consumer groups in the admin, and the permissions of what is done to them there."""

    class Meta:
        proxy = True
        verbose_name = _("consumer group")
        verbose_name_plural = _("consumer groups")
        default_permissions = ("view",)
        permissions = [
            ("operate_group", "Can pause and resume a consumer group"),
            ("scale_group", "Can scale a consumer group"),
            ("reset_group", "Can reset a consumer group"),
            ("skip_message", "Can skip a message of a consumer group"),
            ("redrive_message", "Can redrive parked messages"),
            ("discard_message", "Can discard parked messages"),
            ("forget_group", "Can forget a consumer group"),
            ("end_session", "Can end a session that holds the horizon back"),
        ]


class ParkedMessage(LogModel):
    """A message that a group gave up on, or that waits behind one of the same key."""

    class Reason(models.TextChoices):
        FAILED = "failed", _("failed")
        UNDECODABLE = "undecodable", _("undecodable")
        UNKNOWN = "unknown", _("of a type that the code does not know")
        BLOCKED = "blocked", _("blocked by an earlier message of its key")

    group = models.CharField(_("group"), max_length=GROUP_LENGTH)
    channel = models.CharField(_("channel"), max_length=CHANNEL_LENGTH)
    position = models.BigIntegerField(_("position"))
    key = models.TextField(_("key"), null=True)
    slot = models.SmallIntegerField(_("slot"))
    type = models.TextField(_("type"))
    payload = PayloadField(_("payload"))
    headers = models.JSONField(_("headers"))
    created_at = models.DateTimeField(_("created at"))
    replayed = models.BooleanField(_("replayed"), db_default=False)
    reason = models.TextField(_("reason"), choices=Reason.choices)
    attempts = models.IntegerField(_("failed attempts"), db_default=0)
    error_class = models.TextField(_("error class"), db_default="")
    error = models.TextField(_("error"), db_default="")
    traceback = models.TextField(_("traceback"), db_default="")
    first_failed_at = models.DateTimeField(_("first failure"), null=True)
    last_failed_at = models.DateTimeField(_("last failure"), null=True)
    parked_at = models.DateTimeField(_("parked at"), db_default=ClockTimestamp())

    class Meta:
        db_table = "outbox_parked_message"
        verbose_name = _("parked message")
        verbose_name_plural = _("parked messages")
        constraints = [
            models.UniqueConstraint(fields=["group", "position"], name="outbox_parked_once")
        ]
        indexes = [
            models.Index(
                fields=["group", "channel", "slot", "position"], name="outbox_parked_by_slot"
            )
        ]

    def __str__(self) -> str:
        return f"{self.group} {self.channel} {self.position} {self.reason}"


class OperatorAction(LogModel):
    """Who changed what about a group, when, from what to what, and why."""

    at = models.DateTimeField(_("at"), db_default=Now())
    actor = models.TextField(_("actor"))
    action = models.TextField(_("action"))
    group = models.CharField(_("group"), max_length=GROUP_LENGTH)
    details = models.JSONField(_("details"), default=dict)

    class Meta:
        db_table = "outbox_operator_action"
        verbose_name = _("operator action")
        verbose_name_plural = _("operator actions")
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.action} {self.group} by {self.actor}"


class Snapshot(LogModel):
    """How far the snapshot of a model's rows is in one channel; it goes on from there."""

    model = models.TextField(_("model"))
    channel = models.CharField(_("channel"), max_length=CHANNEL_LENGTH)
    conditions = models.TextField(_("conditions"), db_default="")
    last_key = models.JSONField(_("last primary key"), null=True)
    emitted = models.BigIntegerField(_("emitted messages"), db_default=0)
    started_at = models.DateTimeField(_("started at"), db_default=ClockTimestamp())
    last_commit_at = models.DateTimeField(_("last commit"), db_default=ClockTimestamp())
    finished_at = models.DateTimeField(_("finished at"), null=True)

    class Meta:
        db_table = "outbox_snapshot"
        verbose_name = _("snapshot")
        verbose_name_plural = _("snapshots")
        constraints = [
            models.UniqueConstraint(fields=["model", "channel"], name="outbox_snapshot_once")
        ]

    def __str__(self) -> str:
        return f"{self.model} in {self.channel}: {self.emitted}"
