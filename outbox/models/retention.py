"""What retention removed and archived, and when the log was maintained."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from .log_model import CHANNEL_LENGTH, ClockTimestamp, LogModel


class ChannelRetention(LogModel):
    """Up to which position messages of a channel were removed; replay begins behind it."""

    channel = models.CharField(_("channel"), max_length=CHANNEL_LENGTH, primary_key=True)
    removed_to = models.BigIntegerField(_("removed up to position"))

    class Meta:
        db_table = "outbox_channel_retention"
        verbose_name = _("channel retention")
        verbose_name_plural = _("channel retentions")

    def __str__(self) -> str:
        return f"{self.channel} up to {self.removed_to}"


class ArchivedSegment(LogModel):
    """A file with messages that retention removed from a segment."""

    name = models.TextField(_("file"))
    storage = models.TextField(_("storage alias"))
    lower = models.BigIntegerField(_("first position of the segment"))
    upper = models.BigIntegerField(_("first position after the segment"))
    messages = models.BigIntegerField(_("messages"))
    first_position = models.BigIntegerField(_("first position"))
    last_position = models.BigIntegerField(_("last position"))
    checksum = models.TextField(_("SHA-256 of its messages as JSON lines"))
    file_checksum = models.TextField(_("SHA-256 of the file"))
    archived_at = models.DateTimeField(_("archived at"), db_default=ClockTimestamp())
    restored_until = models.DateTimeField(_("restored, and kept until"), null=True)
    is_obsolete = models.BooleanField(_("its file is to be deleted"), db_default=False)

    class Meta:
        db_table = "outbox_archived_segment"
        verbose_name = _("archived segment")
        verbose_name_plural = _("archived segments")
        ordering = ["first_position"]

    def __str__(self) -> str:
        return f"{self.name}: {self.first_position} to {self.last_position}"


class Maintenance(LogModel):
    """One row: when the log was maintained last, and why that failed."""

    id = models.SmallIntegerField(primary_key=True)
    succeeded_at = models.DateTimeField(_("succeeded at"), null=True)
    failed_at = models.DateTimeField(_("failed at"), null=True)
    error = models.TextField(_("error"), blank=True)

    class Meta:
        db_table = "outbox_maintenance"
        verbose_name = _("maintenance")
        verbose_name_plural = _("maintenances")

    def __str__(self) -> str:
        return self.error or f"succeeded at {self.succeeded_at}"
