import pgpubsub
from django.utils import timezone

from blog.channels import AuthorTriggerChannel, PostReads, PostTriggerChannel
from blog.models import Post


@pgpubsub.post_insert_listener(AuthorTriggerChannel)
def create_first_post_for_author(old, new):
    Post.objects.create(author_id=new.pk, content="Welcome!", date=timezone.now())


@pgpubsub.post_delete_listener(PostTriggerChannel)
def tell_author(old, new):
    print(f"post {old.pk} of author {old.author_id} is gone")


@pgpubsub.listener(PostReads)
def count_read(model_id, date):
    print(f"post {model_id} was read on {date:%d.%m.}")
