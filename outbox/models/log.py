"""The log: its messages, and the versions of streams."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Func, Value
from django.db.models.functions import Coalesce
from django.utils.translation import gettext_lazy as _

from .. import triggers
from .log_model import CHANNEL_LENGTH, SLOTS, ClockTimestamp, LogModel, PayloadField


class Message(LogModel):
    """One immutable row of the log."""

    position = models.BigAutoField(_("position"), primary_key=True)
    created_at = models.DateTimeField(_("created at"), db_default=ClockTimestamp(), editable=False)
    slot = models.GeneratedField(
        expression=Coalesce(
            Func(F("key"), Value(0), function="hashtextextended").bitand(SLOTS - 1), Value(0)
        ),
        output_field=models.SmallIntegerField(),
        db_persist=True,
    )
    channel = models.CharField(_("channel"), max_length=CHANNEL_LENGTH)
    key = models.TextField(_("key"), null=True, blank=True)
    type = models.TextField(_("type"))
    payload = PayloadField(_("payload"))
    headers = models.JSONField(_("headers"), default=dict)

    class Meta:
        db_table = "outbox_message"
        verbose_name = _("message")
        verbose_name_plural = _("messages")
        indexes = [
            models.Index(fields=["channel", "position", "slot"], name="outbox_message_by_channel")
        ]
        triggers = [triggers.TAKE_FLOOR, triggers.CHECK_POSITIONS_AND_NOTIFY, triggers.APPEND_ONLY]

    def __str__(self) -> str:
        return f"{self.channel} {self.position} {self.type}"


class Stream(models.Model):
    """The version of a stream: how many messages of one key of a stream channel there are."""

    pk = models.CompositePrimaryKey("channel", "key")
    channel = models.CharField(_("channel"), max_length=CHANNEL_LENGTH)
    key = models.TextField(_("key"))
    version = models.BigIntegerField(_("version"))

    class Meta:
        db_table = "outbox_stream"
        verbose_name = _("stream")
        verbose_name_plural = _("streams")

    def __str__(self) -> str:
        return f"{self.channel} {self.key} at {self.version}"


class StreamMessage(models.Model):
    """The position of the message of each version of a stream."""

    pk = models.CompositePrimaryKey("channel", "key", "version")
    channel = models.CharField(_("channel"), max_length=CHANNEL_LENGTH)
    key = models.TextField(_("key"))
    version = models.BigIntegerField(_("version"))
    position = models.BigIntegerField(_("position"))

    class Meta:
        db_table = "outbox_stream_message"
        verbose_name = _("stream message")
        verbose_name_plural = _("stream messages")

    def __str__(self) -> str:
        return f"{self.channel} {self.key} {self.version} at {self.position}"
