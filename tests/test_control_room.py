"""The control room: pages of Django's admin that show what is late, and actions on it."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

import outbox
from outbox.models import Cursor, Message, OperatorAction, ParkedMessage
from outbox.operations import audit, pauses, redrives, scaling
from outbox.testing import isolated_groups
from tests.support.harness import backend, execute, insert
from tests.support.processes import wait_until
from tests.support.publishing import publish

pytestmark = pytest.mark.django_db(transaction=True)

GROUPS = "/admin/outbox/group/"
LOG = "/admin/outbox/message/"
PARKED = "/admin/outbox/parkedmessage/"
RECORD = "/admin/outbox/operatoraction/"
GROUP = f"{GROUPS}scripted/change/"
MOST_QUERIES = 12
TRANSACTION = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")


class Operator:
    """A user of the admin, and what a browser of theirs does."""

    def __init__(self, name, *permissions, **kind):
        self.user = User.objects.create_user(name, is_staff=True, **kind)
        for permission in permissions:
            self.user.user_permissions.add(
                Permission.objects.get(content_type__app_label="outbox", codename=permission)
            )
        self.client = Client(enforce_csrf_checks=True)
        self.client.force_login(self.user)

    def get(self, address, code=200):
        answer = self.client.get(address)
        assert answer.status_code == code, answer.content.decode()[-2000:]
        return unescape(answer.content.decode())

    def confirm(self, address, reason="a test", code=302, **changes):
        """Look at the plan of an action, and confirm it with the fields of the page's own form."""
        page = self.client.get(address).content.decode()
        form = page[page.index('<form method="post" action="/admin/outbox') :]
        fields = {
            name: unescape(value)
            for name, value in re.findall(
                r'<input type="hidden" name="(\w+)" value="([^"]*)"', form
            )
        }
        return self.send(address, {**fields, "reason": reason, **changes}, code)

    def send(self, address, fields, code):
        answer = self.client.post(address.partition("?")[0], fields)
        assert answer.status_code == code, answer.content.decode()[-2000:]
        return unescape(answer.content.decode())


VIEWS = ["view_group", "view_message", "view_parkedmessage", "view_operatoraction"]
ACTIONS = [
    "operate_group",
    "scale_group",
    "reset_group",
    "skip_message",
    "redrive_message",
    "discard_message",
    "forget_group",
    "end_session",
]


@pytest.fixture
def ann(transactional_db):
    return Operator("ann", *VIEWS, *ACTIONS)


@pytest.fixture
def trouble(script):
    """A group with five parked messages of two keys, and one without a key."""
    made = script(retry=outbox.Retry(max_attempts=1))
    made.faults = {"a": ValueError("no such order"), "b": KeyError("customer")}
    made.positions = publish("a", "a", "b", "a", "b", None, "c")
    made.drain()
    return made


def do(action, choice="", group="scripted"):
    return f"{GROUPS}{group}/do/{action}/{choice}"


def test_each_page_shows_what_it_is_for(trouble, ann):
    """Groups, a group, the log, a message, parked messages by error and by key, one of them, segments,
    the record."""
    pauses.pause("scripted", reason="deploy of the week")
    parked = ParkedMessage.objects.earliest("position")
    group, of_group = ann.get(GROUP), ann.get(f"{PARKED}?group=scripted")
    one = ann.get(f"{PARKED}{parked.pk}/change/")

    assert "paused" in ann.get(GROUPS)
    assert "builtins.ValueError" in group
    assert "deploy of the week" in group
    assert f"{LOG}{trouble.positions[6]}/change/" in ann.get(LOG)
    assert "has passed it" in ann.get(f"{LOG}{trouble.positions[6]}/change/")
    assert "no such order" in ann.get(f"{LOG}{parked.position}/change/")
    assert "behind an earlier message of the key" in of_group
    assert "Traceback" in one
    assert "outbox_message_default" in ann.get(f"{LOG}segments/")
    assert "deploy of the week" in ann.get(f"{RECORD}?group=scripted")


def test_links_lead_from_the_group_to_the_same_key_in_the_log(trouble, ann):
    """Group, parked messages of an error, a parked message, its log entry, the key's messages."""
    parked = ParkedMessage.objects.earliest("position")
    of_error = f"{PARKED}?group=scripted&error=builtins.ValueError"
    same_key = f"?channel=trouble&key=a&position={parked.position}"

    assert of_error in ann.get(GROUP)
    assert f"{PARKED}{parked.pk}/change/" in ann.get(of_error)
    assert f"{LOG}{parked.position}/change/" in ann.get(f"{PARKED}{parked.pk}/change/")
    assert LOG + same_key in ann.get(f"{LOG}{parked.position}/change/")
    assert f"{LOG}{trouble.positions[1]}/change/" in ann.get(f"{LOG}{trouble.positions[0]}/change/")


def test_a_page_makes_at_most_twelve_queries(trouble, ann):
    """Those of the session, the user and the permissions included, and the plan of each action."""
    publish("d")
    pages = [
        GROUPS,
        GROUP,
        LOG,
        f"{LOG}?channel=trouble&key=a&time=2026-01-01T00:00",
        f"{LOG}{trouble.positions[0]}/change/",
        f"{LOG}segments/",
        PARKED,
        f"{PARKED}?group=scripted",
        f"{PARKED}{ParkedMessage.objects.earliest('position').pk}/change/",
        RECORD,
        *[do(name, choice) for name, choice in PLANS.items()],
    ]
    counts = {}
    for page in pages:
        with CaptureQueriesContext(connection) as queries:
            ann.get(page)
        counts[page] = [q["sql"] for q in queries if q["sql"].split()[0] not in TRANSACTION]

    assert {page: len(sql) for page, sql in counts.items() if len(sql) > MOST_QUERIES} == {}
    assert [
        sql
        for each in counts.values()
        for sql in each
        if 'COUNT(*) AS "__count" FROM "outbox_message"' in sql
    ] == []


PLANS = {
    "pause": "",
    "resume": "",
    "scale": "?to=2",
    "reset": "?way=to_earliest",
    "redrive": "?all=on",
    "discard": "?error=builtins.ValueError",
    "forget": "",
}


def test_looking_changes_nothing(trouble, ann):
    """Every page and every plan, also those with choices, is read by GET and leaves all as it was."""

    def state():
        return [
            list(model.objects.order_by("pk").values())
            for model in (Cursor, ParkedMessage, OperatorAction)
        ]

    before = state()
    for name, choice in PLANS.items():
        ann.get(do(name, choice))
    for page in (GROUPS, GROUP, LOG, PARKED, RECORD):
        ann.get(page)

    assert state() == before
    assert not LogEntry.objects.exists()


def test_a_forged_form_is_refused(trouble, ann):
    """Without the token of CSRF nothing is done."""
    ann.send(do("pause"), {"plan": "{}", "reason": "x"}, 403)

    assert Cursor.objects.get(group="scripted").paused_until is None


@pytest.mark.parametrize("action", sorted([*PLANS, "skip"]))
def test_without_the_permission_there_is_no_button_and_no_page(trouble, transactional_db, action):
    """An operator with all permissions but one sees the page without that button, and gets 403."""
    from outbox.admin.pages import ACTION_PERMISSIONS

    needed = ACTION_PERMISSIONS[action]
    bob = Operator("bob", *VIEWS, *[name for name in ACTIONS if name != needed])
    address = do(action, PLANS.get(action, ""))
    token = bob.client.get(do("scale" if action != "scale" else "reset", "?to=2&way=to_earliest"))
    token = token.cookies["csrftoken"].value

    assert do(action) not in bob.get(GROUP)
    assert do(action) not in bob.get(f"{PARKED}?group=scripted")
    bob.get(address, code=403)
    bob.send(address, {"csrfmiddlewaretoken": token, "plan": "{}", "reason": "x"}, 403)


def test_a_user_without_a_view_permission_sees_no_page(trouble, transactional_db):
    """Each kind of page needs the permission to view its model."""
    bob = Operator("bob", "view_operatoraction")

    bob.get(RECORD)
    for page in (GROUPS, GROUP, LOG, PARKED, do("pause")):
        bob.get(page, code=403)


def test_pause_and_resume(trouble, ann):
    """Both are recorded with the user's name and the reason, and in Django's own log."""
    ann.confirm(do("pause"), reason="maintenance")
    paused = Cursor.objects.get(group="scripted").paused_until
    ann.confirm(do("resume"))
    records = OperatorAction.objects.order_by("id").values_list("actor", "action")

    assert paused == pauses.FOREVER
    assert list(records) == [("ann", "pause"), ("ann", "resume")]
    assert OperatorAction.objects.earliest("id").details["reason"] == "maintenance"
    assert (
        list(LogEntry.objects.values_list("user__username", "object_id"))
        == [("ann", "scripted")] * 2
    )
    assert LogEntry.objects.first().get_admin_url() == GROUP


def test_an_action_without_a_reason_is_not_done(trouble, ann):
    """The page comes back and says so."""
    answer = ann.confirm(do("pause"), reason=" ", code=200)

    assert "This field is required" in answer
    assert Cursor.objects.get(group="scripted").paused_until is None


def test_a_reset_that_a_worker_overtook_is_refused(trouble, ann):
    """The confirmation says what changed, shows the new plan, and nothing was moved."""
    page = ann.client.get(do("reset", "?way=to_earliest")).content.decode()
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
    fields = {name: unescape(value) for name, value in fields.items()}
    (position,) = publish("z")
    trouble.drain()
    answer = ann.send(do("reset"), {**fields, "reason": "again"}, 409)

    assert f"was {trouble.positions[-1]} → " in answer
    assert f"is now {position} → " in answer
    assert Cursor.objects.get(group="scripted").position == position
    assert not OperatorAction.objects.exists()


def test_a_reset_goes_where_the_plan_said(trouble, ann):
    """To the end means the end that was shown, whatever was published since then."""
    pauses.pause("scripted")
    publish("x")
    page = ann.client.get(do("reset", "?way=to_latest")).content.decode()
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
    fields = {name: unescape(value) for name, value in fields.items()}
    shown = json.loads(fields["places"])[0][3]
    publish("y")
    ann.send(do("reset"), {**fields, "reason": "skip x"}, 302)

    assert (
        Cursor.objects.get(group="scripted").position
        == shown
        < Message.objects.latest("position").pk
    )


@pytest.mark.parametrize(
    "choice",
    ["?way=position&value=x", "?way=position&value=" + "9" * 30, "?way=to_time&value=noon", "?way=&value=",
     "?way=to_group&value=nobody", "?way=by_duration&value=P99999999999D"],
)  # fmt: skip
def test_a_choice_that_says_nothing_shows_no_plan(trouble, ann, choice):
    """The page says what is wrong with it."""
    answer = ann.client.get(do("reset", choice))

    assert answer.status_code in (200, 400)
    assert 'id="ob-plan"' not in answer.content.decode()


def test_redrive_by_error(trouble, ann):
    """The keys whose first message failed with it are handled; what failed again is told."""
    del trouble.faults["a"]
    ann.confirm(do("redrive", "?error=builtins.ValueError"))
    left = ParkedMessage.objects.values_list("key", flat=True)
    ann.confirm(do("redrive", "?all=on"))

    assert set(left) == {"b"}
    assert "failed again" in ann.get(GROUP)
    assert audit.audit("scripted").passed
    assert list(OperatorAction.objects.values_list("actor", "action")) == [("ann", "redrive")] * 2


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        ("?error=builtins.ValueError", {"a": 2, "b": 2}),
        ("?key=b", {"a": 3}),
        ("?kind=blocked", {"a": 1, "b": 1}),
        ("?all=on", {}),
    ],
)
def test_discard_by_error_key_kind_or_all(trouble, ann, choice, left):
    """Exactly the selection goes, and the account of the group holds."""
    ann.confirm(do("discard", choice))
    keys = list(ParkedMessage.objects.values_list("key", flat=True))

    assert {key: keys.count(key) for key in set(keys)} == left
    assert audit.audit("scripted").passed


def test_a_discard_is_refused_when_more_was_parked(trouble, ann):
    """What the operator has not seen is not dropped."""
    page = ann.client.get(do("discard", "?all=on")).content.decode()
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
    publish("a")
    trouble.drain()
    fields = {name: unescape(value) for name, value in fields.items()}
    answer = ann.send(do("discard"), {**fields, "reason": "x"}, 409)

    assert "messages: was 5, is now 6." in answer
    assert ParkedMessage.objects.count() == 6


def test_a_key_without_parked_messages_is_told_as_released(trouble, ann):
    """A discard of a whole key sends key_released, as a redrive does."""
    released = []

    def note(**told):
        released.append(told["key"])

    outbox.signals.key_released.connect(note)
    ann.confirm(do("discard", "?key=b"))
    ann.confirm(do("discard", "?kind=blocked"))
    outbox.signals.key_released.disconnect(note)

    assert released == ["b"]


def test_skip_and_forget(script, ann):
    """The message at hand is left out; the cursors of a group are deleted."""
    made = script(retry=outbox.Retry(base=300))
    made.faults = {"a": ValueError("no")}
    bad, good = publish("a", "b")
    made.drain()

    assert f"{do('skip')}?position={bad}" in ann.get(GROUP)
    ann.confirm(do("skip", f"?position={bad}"))
    made.drain()
    assert made.effects() == [good]
    assert "is declared in trouble" in ann.confirm(do("forget"), code=400)
    with isolated_groups(empty=True):
        ann.confirm(do("forget"))
    assert not Cursor.objects.filter(group="scripted").exists()


def test_scale(trouble, ann):
    """More ranges are there at once."""
    ann.confirm(do("scale", "?to=4"))

    assert Cursor.objects.filter(group="scripted").count() == 4
    assert audit.audit("scripted").passed


def test_a_stuck_publisher_is_shown_and_ended(trouble, ann, connect):
    """The groups' page names the session that holds the horizon back; ending it is recorded, and what
    waited is handled."""
    stuck, other = connect(), connect()
    execute(stuck, "BEGIN")
    insert(stuck, channel="trouble")
    pid = backend(stuck)
    insert(other)
    page = wait_until(lambda: (p := ann.get(GROUPS)) and f"session/{pid}/end/" in p and p)
    ann.confirm(f"{GROUPS}session/{pid}/end/", reason="forgotten")
    wait_until(lambda: not execute(other, "SELECT FROM pg_stat_activity WHERE pid = %s", pid))

    assert "held back" in page
    assert OperatorAction.objects.get().details["old"]["pid"] == pid
    ann.get(f"{GROUPS}session/{pid}/end/", code=400)


def test_a_session_in_another_transaction_is_left_alone(ann, connect):
    """The plan names the transaction that was seen."""
    stuck = connect()
    execute(stuck, "BEGIN")
    insert(stuck)
    pid = backend(stuck)
    page = ann.client.get(f"{GROUPS}session/{pid}/end/").content.decode()
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
    execute(stuck, "COMMIT")
    execute(stuck, "BEGIN")
    insert(stuck)
    fields = {name: unescape(value) for name, value in fields.items()}
    answer = ann.send(f"{GROUPS}session/{pid}/end/", {**fields, "reason": "x"}, 409)

    assert "transaction since: was" in answer
    assert execute(stuck, "SELECT 1") == [(1,)]


def test_payloads_are_masked(trouble, ann, settings):
    """The hook decides what the pages show; when it fails nothing is shown."""
    parked = ParkedMessage.objects.earliest("position")
    pages = [f"{PARKED}{parked.pk}/change/", f"{LOG}{parked.position}/change/"]
    settings.OUTBOX = {"MASK": lambda payload, message: {"hidden": message.type}}
    masked = [ann.get(page) for page in pages]
    settings.OUTBOX = {"MASK": "tests.no_such_function"}
    broken = [ann.get(page) for page in pages]

    assert all('"hidden": "Order"' in page and '"number"' not in page for page in masked)
    assert all("payload is hidden" in page and '"number"' not in page for page in broken)


def test_the_log_is_read_by_position(trouble, ann):
    """Older and newer pages meet without a gap, with and without a filter."""
    positions = [*trouble.positions, *publish(*[str(n % 60) for n in range(120)])]
    for start in (f"{LOG}?channel=trouble", f"{LOG}?type=Order"):
        seen, address = [], start
        while address:
            page = ann.get(address)
            seen += [int(p) for p in re.findall(rf"{LOG}(\d+)/change/", page)]
            older = re.search(r'rel="next" href="(\?[^"]*)"', page)
            address = older and LOG + older[1]

        assert seen == positions[::-1]


def test_the_live_view_works_without_javascript(ann):
    """On: the browser reloads; off: it does not. The switch is a link."""
    on, off = ann.get(f"{GROUPS}?live=on"), ann.get(GROUPS)

    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in on
    assert "http-equiv" not in off
    assert 'href="?live=on"' in off


def test_hostile_texts_stay_texts(script, ann):
    """A key, type or error with markup is shown, not obeyed; a group's name may hold a slash."""
    made = script("a/b <i>", retry=outbox.Retry(max_attempts=1))
    made.faults = {"<script>": ValueError("<img src=x>")}
    publish("<script>")
    made.drain()
    page = ann.client.get(f"{PARKED}?group=a/b+<i>").content.decode()
    address = re.search(r'href="(/admin/outbox/group/[^"]*/change/)"', page)[1]

    assert "<script>" not in page[page.index('id="ob-live"') :]
    assert "<img" not in page[page.index('id="ob-live"') :]
    assert "a/b <i>" in ann.get(address)


def test_rows_cannot_be_added_changed_or_deleted(transactional_db):
    """Not even by a superuser."""
    root = Operator("root", is_superuser=True)
    with transaction.atomic():
        position = outbox.publish_raw("orders", "OrderPlaced", {"order_id": 1})

    root.get(f"{LOG}add/", code=403)
    root.get(f"{LOG}{position}/delete/", code=403)
    assert 'name="_save"' not in root.get(f"{LOG}{position}/change/")


def test_an_address_that_is_wrong_is_not_an_error(ann):
    """Numbers, times and names that nobody has."""
    for page in (
        f"{LOG}x/change/",
        f"{LOG}{10**30}/change/",
        f"{PARKED}0/change/",
        f"{GROUPS}nobody/change/",
    ):
        ann.get(page, code=404)
    for query in (
        "before=x",
        f"before={10**30}",
        "time=noon",
        "key=%00",
        "position=-1",
        "time=0001-01-01T00:00",
    ):
        ann.get(f"{LOG}?{query}")
    ann.get(f"{PARKED}?group=nobody&since=x")


def test_redrive_reports_to_the_library_what_it_did(trouble):
    """Progress comes after each message; the record stands also when the redrive is broken off."""
    trouble.faults.clear()
    seen = []

    def stop(tried, selected):
        seen.append((tried, selected))
        if tried == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        redrives.redrive("scripted", everything=True, progress=stop, reason="half")

    assert seen == [(1, 5), (2, 5)]
    assert OperatorAction.objects.get().details["new"] == {"handled": 2, "remaining": 3}


def test_no_page_reads_the_log_without_an_index_or_without_a_bound(trouble, ann, monkeypatch):
    """The plans of all statements of all pages, over a log that is larger than what a page may look
    at: no sequential scan, no sort of the log, and fewer rows than the log has."""
    most = 500
    monkeypatch.setattr("outbox.operations.log_pages.WALKED", most)
    monkeypatch.setattr("outbox.operations.status.LATEST_MESSAGES", most)
    monkeypatch.setattr("outbox.admin.groups.LAG_COUNTED", most)
    monkeypatch.setattr("outbox.admin.group_actions.COUNTED", most)
    for _ in range(20):
        publish(*(str(number % 50) for number in range(most)))
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE outbox_message")
    position = trouble.positions[0]
    pages = [
        GROUPS,
        GROUP,
        LOG,
        f"{LOG}?before={position + 10 * most}",
        f"{LOG}?time=2026-01-01T00:00",
        f"{LOG}?key=no-such-key",
        f"{LOG}?channel=trouble&key=c",
        f"{LOG}?type=NoSuchType",
        f"{LOG}{position}/change/",
        f"{LOG}segments/",
        PARKED,
        f"{PARKED}?group=scripted",
        RECORD,
        *[do(name, choice) for name, choice in PLANS.items()],
    ]
    faults = {page: found for page in pages if (found := log_reads(ann, page, 4 * most))}

    assert faults == {}


def test_a_rare_key_or_type_is_looked_for_among_so_many_messages(trouble, ann, monkeypatch):
    """A page looks at a bounded number of messages, says so, and goes on from there, for a key that
    nothing has as for a type."""
    monkeypatch.setattr("outbox.operations.log_pages.WALKED", 30)
    publish(*(str(number) for number in range(100)))
    pages = [
        ann.get(f"{LOG}?{query}") for query in ("key=nothing", "channel=trouble&key=a", "type=T")
    ]

    assert all("30 messages were looked at" in page for page in pages)
    assert all('rel="next"' in page for page in pages)


def test_the_plan_of_a_reset_counts_within_a_bound(trouble, ann, monkeypatch):
    """Over all ranges together, and a plus sign says that there may be more."""
    publish(*(str(number) for number in range(100)))
    trouble.drain()
    scaling.scale("scripted", 4)
    monkeypatch.setattr("outbox.admin.group_actions.COUNTED", 20)
    page = ann.get(do("reset", "?way=to_earliest"))
    shown = page[page.index('id="ob-plan"') : page.index("</dl>", page.index('id="ob-plan"'))]
    counts = re.findall(r"(\d+)(\+?) messages? handled again", shown)

    assert len(counts) == 4
    assert sum(int(count) for count, _ in counts) <= 20
    assert {plus for _, plus in counts} == {"+"}


def log_reads(ann, page, most):
    """What the statements of a page do to the log that they must not do."""
    with CaptureQueriesContext(connection) as queries:
        ann.get(page)
    found = []
    for sql in {each["sql"] for each in queries if "outbox_" in each["sql"]}:
        if sql.lstrip().split()[0] not in ("SELECT", "WITH"):
            continue
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
            (plan,) = cursor.fetchone()
        plan = json.loads(plan) if isinstance(plan, str) else plan
        scans = [node for node in nodes(plan[0]["Plan"]) if is_of_log(node)]
        read = sum(
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            for node in scans
        )
        if read > most or any(node["Node Type"] == "Seq Scan" for node in scans):
            found.append((sql, read, [node["Node Type"] for node in scans]))
    return found


def is_of_log(node):
    return node.get("Relation Name", "").startswith("outbox_message") and node["Actual Loops"]


def nodes(plan):
    yield plan
    for each in plan.get("Plans", ()):
        yield from nodes(each)
