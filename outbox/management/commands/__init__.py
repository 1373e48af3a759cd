"""The commands `consume` and `outbox`."""
