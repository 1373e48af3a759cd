import datetime

from django.db import models, transaction

import outbox
from blog import events


class Author(models.Model):
    name = models.TextField()

    class Meta:
        triggers = [*outbox.capture(channel="authors", on="insert")]


class Post(models.Model):
    content = models.TextField()
    date = models.DateTimeField()
    author = models.ForeignKey(Author, null=True, on_delete=models.SET_NULL)

    class Meta:
        triggers = [*outbox.capture(channel="posts", on="delete")]

    @classmethod
    def fetch(cls, post_id):
        post = cls.objects.get(pk=post_id)
        with transaction.atomic():
            outbox.publish(events.PostRead(post_id=post_id, date=datetime.date.today()))
        return post
