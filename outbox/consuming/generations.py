"""The last generation of each range that a worker claimed: a new one is an operator's change."""

from __future__ import annotations

import logging

from .cursors import Claim

logger = logging.getLogger("outbox.consuming")


class Generations:
    """Logs when a range that this worker claimed before was reset, skipped, split or merged."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def compare(self, claim: Claim) -> None:
        """Compare a claim with the worker's last claim of the same range."""
        if self._known.get(claim.id, claim.generation) != claim.generation:
            logger.info(
                "group %s, slots %d to %d of channel %s: an operator reset or reshaped the range; "
                "continues after position %d",
                claim.group,
                claim.slot_from,
                claim.slot_to,
                claim.channel,
                claim.position,
                extra={"group": claim.group, "channel": claim.channel, "position": claim.position},
            )
        self._known[claim.id] = claim.generation
