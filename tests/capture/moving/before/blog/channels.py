import datetime
from dataclasses import dataclass

from pgpubsub.channel import Channel, TriggerChannel

from blog.models import Author, Post


@dataclass
class PostReads(Channel):
    lock_notifications = True
    model_id: int
    date: datetime.date


@dataclass
class AuthorTriggerChannel(TriggerChannel):
    model = Author
    lock_notifications = True


@dataclass
class PostTriggerChannel(TriggerChannel):
    model = Post
    lock_notifications = True
