import datetime

import pgpubsub
from django.db import models


class Author(models.Model):
    name = models.TextField()


class Post(models.Model):
    content = models.TextField()
    date = models.DateTimeField()
    author = models.ForeignKey(Author, null=True, on_delete=models.SET_NULL)

    @classmethod
    def fetch(cls, post_id):
        post = cls.objects.get(pk=post_id)
        pgpubsub.notify("blog.channels.PostReads", model_id=post_id, date=datetime.date.today())
        return post
