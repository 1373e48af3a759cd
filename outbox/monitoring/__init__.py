"""Numbers, health and traces: what a monitoring system reads of the log and of its workers."""
