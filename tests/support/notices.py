"""What the server says on a session beside its answers."""


class Notices:
    """What the server says on a session; psycopg2 would keep the last fifty in a list."""

    def __init__(self, session):
        self.texts = []
        if hasattr(session, "add_notice_handler"):
            session.add_notice_handler(lambda notice: self.append(notice.message_primary))
        else:
            session.notices = self

    def append(self, text):
        self.texts.append(text)
