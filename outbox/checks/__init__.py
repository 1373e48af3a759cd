"""System checks: a wrong setting or database is found at start, with the way out."""
