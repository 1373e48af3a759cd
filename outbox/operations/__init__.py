"""What an operator sees and does; the commands under `management` print it."""
