"""The blog of django-pgpubsub's documentation, before and after it moved to the outbox."""
