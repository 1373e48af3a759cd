"""Streams and event-sourced models: the messages of one key, numbered without gaps from 1."""
