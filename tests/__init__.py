"""The tests of django-pgoutbox."""
