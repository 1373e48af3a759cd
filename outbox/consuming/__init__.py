"""From claim to commit: what a worker does with a batch, and with messages that fail."""
