from django.utils import timezone

import outbox
from blog.events import PostRead
from blog.models import Author, Post

welcome = outbox.ConsumerGroup("welcome", channels=["authors"])
mailing = outbox.ConsumerGroup("mailing", channels=["posts"])
statistics = outbox.ConsumerGroup("statistics", channels=["reads"])


@welcome.handler(outbox.Change[Author])
def create_first_post_for_author(event, message):
    Post.objects.create(author_id=event.new.pk, content="Welcome!", date=timezone.now())


@mailing.handler(outbox.Change[Post])
def tell_author(event, message):
    print(f"post {event.old.pk} of author {event.old.author_id} is gone")


@statistics.handler(PostRead)
def count_read(event, message):
    print(f"post {event.post_id} was read on {event.date:%d.%m.}")
