import datetime

import outbox


class PostRead(outbox.Event, channel="reads", key="post_id"):
    post_id: int
    date: datetime.date
