# mypy: ignore-errors
import uuid

import pgtrigger
from django.contrib.auth.models import User
from django.contrib.postgres import fields as postgres
from django.db import models
from django.db.models.functions import Upper

import outbox


class Media(models.Model):
    """Its primary key has a name of its own."""

    key = models.AutoField(primary_key=True)
    name = models.TextField()
    content_type = models.TextField(null=True)
    size = models.BigIntegerField(null=True)
    store_id = models.TextField(null=True)

    class Meta:
        triggers = [*outbox.capture(channel="media")]


class Author(models.Model):
    """Foreign keys, and columns whose names are not the fields'."""

    user = models.ForeignKey(User, on_delete=models.PROTECT, null=True)
    name = models.TextField()
    age = models.IntegerField(null=True)
    active = models.BooleanField(default=True)
    profile_picture = models.ForeignKey(
        Media, null=True, on_delete=models.PROTECT, db_column="picture"
    )
    alternative_name = models.TextField(db_column="other", null=True)

    class Meta:
        triggers = [*outbox.capture(channel="authors")]


class Post(models.Model):
    """In two channels; one of them is not told of content."""

    content = models.TextField()
    date = models.DateTimeField()
    author = models.ForeignKey(Author, null=True, on_delete=models.SET_NULL)
    files = models.ManyToManyField(Media)
    rating = models.DecimalField(null=True, decimal_places=20, max_digits=40)

    class Meta:
        triggers = [
            *outbox.capture(channel="posts"),
            *outbox.capture(channel="ratings", exclude=["content"], key="author"),
        ]


class Parent(models.Model):
    key = models.AutoField(primary_key=True, editable=False)
    title = models.TextField(default="")

    class Meta:
        triggers = [*outbox.capture(channel="parents")]


class Child(Parent):
    """Its table has its own columns only; the parent's table is captured apart."""

    toy = models.TextField(default="")

    class Meta:
        triggers = [*outbox.capture(channel="children")]


class AbstractParent(models.Model):
    key = models.AutoField(primary_key=True, editable=False)

    class Meta:
        abstract = True
        triggers = [*outbox.capture(channel="offspring")]


class ChildOfAbstract(AbstractParent):
    name = models.TextField(default="")


class OtherChildOfAbstract(AbstractParent):
    pass


class Reader(User):
    """Captures a table of somebody else's app."""

    class Meta:
        proxy = True
        triggers = [*outbox.capture(channel="readers", fields=["username", "email"])]


@outbox.capture(channel="loans", key=("branch", "reference"))
class Loan(models.Model):
    """Captured by the decorator, with a key of two fields."""

    branch = models.TextField(null=True)
    reference = models.TextField()
    note = models.TextField(default="")


class Book(models.Model):
    """A channel for each way to choose what is told."""

    title = models.TextField()
    price = models.DecimalField(max_digits=10, decimal_places=2, default=0)
    status = models.TextField(default="draft")
    stock = models.IntegerField(default=0)

    class Meta:
        triggers = [
            *outbox.capture(channel="titles", fields="title"),
            *outbox.capture(
                channel="prices", on="update", condition=pgtrigger.AnyChange("price"), key=()
            ),
            *outbox.capture(
                channel="published",
                on=["insert", "update"],
                condition=pgtrigger.Q(new__status="it's out"),
            ),
            *outbox.capture(channel="withdrawn", on="delete"),
        ]


class Membership(models.Model):
    """A composite primary key."""

    pk = models.CompositePrimaryKey("club", "number")
    club = models.TextField()
    number = models.IntegerField()
    name = models.TextField(default="")

    class Meta:
        triggers = [*outbox.capture(channel="memberships")]


class LowerCase(models.TextField):
    """A field with a way of its own to read what is stored."""

    def from_db_value(self, value, expression, connection):
        return None if value is None else value.lower()


class Specimen(models.Model):
    """Every type of field."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    small = models.SmallIntegerField(null=True)
    big = models.BigIntegerField(null=True)
    flag = models.BooleanField(null=True)
    text = models.TextField(null=True)
    char = models.CharField(max_length=50, null=True)
    slug = models.SlugField(null=True)
    email = models.EmailField(null=True)
    file = models.FileField(null=True)
    decimal = models.DecimalField(max_digits=60, decimal_places=30, null=True)
    float = models.FloatField(null=True)
    date = models.DateField(null=True)
    time = models.TimeField(null=True)
    moment = models.DateTimeField(null=True)
    duration = models.DurationField(null=True)
    binary = models.BinaryField(null=True)
    address = models.GenericIPAddressField(null=True)
    data = models.JSONField(null=True)
    lower = LowerCase(null=True)
    shout = models.GeneratedField(
        expression=Upper("char"), output_field=models.TextField(null=True), db_persist=True
    )
    numbers = postgres.ArrayField(models.IntegerField(null=True), null=True)
    grid = postgres.ArrayField(postgres.ArrayField(models.DurationField(null=True)), null=True)
    documents = postgres.ArrayField(models.JSONField(null=True), null=True)
    prices = postgres.ArrayField(
        models.DecimalField(max_digits=30, decimal_places=15, null=True), null=True
    )
    whole_range = postgres.BigIntegerRangeField(null=True)
    decimal_range = postgres.DecimalRangeField(null=True)
    date_range = postgres.DateRangeField(null=True)
    moment_range = postgres.DateTimeRangeField(null=True)

    class Meta:
        triggers = [*outbox.capture(channel="specimens")]


class Shelf(models.Model):
    """Not captured."""

    name = models.TextField()


class Counter(models.Model):
    """Written by several sessions at once, and copied by a consumer."""

    value = models.IntegerField(default=0)
    note = models.TextField(default="")

    class Meta:
        triggers = [*outbox.capture(channel="counters")]


class CounterCopy(models.Model):
    """What a consumer made of the counters' messages."""

    value = models.IntegerField()
    note = models.TextField()


class Effect(models.Model):
    """That a handler ran. Nothing is unique, so that a double would show."""

    group = models.TextField()
    position = models.BigIntegerField()
    backend = models.IntegerField()
