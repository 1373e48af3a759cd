"""Workers in processes of their own: start, watch, stop."""
