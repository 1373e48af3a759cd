"""Filters of the control room's templates."""
