"""Model changes as messages: triggers that capture them, and the event of one."""
