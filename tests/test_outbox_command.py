"""`manage.py outbox`: its verbs, what they print, their exit codes, and that the docs say the same."""

import contextlib
import json
import re
import shlex
import signal
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command, load_command_class
from django.db import connection, transaction

import outbox
from outbox import message_log
from outbox.consuming.cursors import register
from outbox.management.verbs import VERBS
from outbox.management.verbs.printer import Printer
from outbox.models import Cursor, OperatorAction
from outbox.operations import pauses
from tests.shop import consumers
from tests.support.harness import Background, drain, execute, handled, insert, worker
from tests.support.processes import manage, start_manage, wait_until
from tests.support.publishing import publish as publish_trouble
from tests.support.publishing import publish_orders

pytestmark = pytest.mark.django_db(transaction=True)

DOCS = Path(__file__).parent.parent / "docs"
GROUP_KEYS = [
    "group", "status", "why", "cure", "position", "last_position", "lag", "lag_is_lower_bound", "lag_seconds", "rate",
    "parked", "workers", "last_commit", "processed", "skipped", "attempts", "last_error",
    "failed_position",
]  # fmt: skip
MESSAGE_KEYS = ["position", "channel", "key", "type", "payload", "headers", "created_at"]
MOVE_KEYS = [
    "channel", "slot_from", "slot_to", "old", "new", "delta", "messages", "clamped",
    "is_lower_bound",
]  # fmt: skip
PAUSE_KEYS = ["group", "channel", "slot_from", "slot_to", "position", "paused_until"]
RANGE_KEYS = [
    "group", "channel", "slot_from", "slot_to", "status", "why", "cure", "position", "lag", "lag_is_lower_bound",
    "lag_seconds", "rate", "processed", "skipped", "parked", "attempts", "last_error", "failed_position", "owner",
    "generation", "last_commit",
]  # fmt: skip
PARKED_KEYS = [
    "id", "group", "channel", "position", "key", "slot", "type", "payload", "headers", "created_at",
    "replayed", "reason", "attempts", "error_class", "error", "traceback", "first_failed_at",
    "last_failed_at", "parked_at",
]  # fmt: skip
KEYS = {
    "groups": GROUP_KEYS,
    "describe": [
        "summary",
        "ranges",
        "workers",
        "horizon",
        "actions",
        "oldest_snapshot",
        "skipped_types",
    ],
    "check": [*GROUP_KEYS, "past"],
    "tail": MESSAGE_KEYS,
    "audit": ["group", "passed", "channels"],
    "doctor": ["check", "level", "detail", "fix"],
    "reset": MOVE_KEYS,
    "pause": PAUSE_KEYS,
    "resume": PAUSE_KEYS,
    "skip": ["group", "channel", "old", "new"],
    "scale": RANGE_KEYS,
    "forget": ["channel", "ranges", "position", "parked"],
    "parked": PARKED_KEYS,
    "redrive": ["handled", "skipped", "failed", "remaining"],
    "discard": ["channel", "key", "position", "remaining"],
    "segments": ["name", "lower", "upper", "rows", "bytes", "guarded", "use"],
}


def run(*arguments):
    """Run the command; return what it wrote to stdout and to stderr."""
    output, narration = StringIO(), StringIO()
    call_command("outbox", *map(str, arguments), stdout=output, stderr=narration, no_color=True)
    return output.getvalue(), narration.getvalue()


def document(*arguments):
    return json.loads(run(*arguments, "--json")[0])


def code_of(*arguments):
    with pytest.raises(CommandError) as error:
        run(*arguments)
    return error.value.returncode


def test_every_verb_writes_the_keys_that_are_documented(script):
    """`--json` writes one document with these keys; docs/operations.md lists them in this order."""
    made = script(retry=outbox.Retry(max_attempts=1))
    made.faults = {"1": ValueError("not now"), "2": ValueError("not now")}
    publish_trouble("1", "2", "3")
    made.drain()
    del made.faults["1"]
    publish_orders(2)
    drain("billing")
    found = {
        "groups": document("groups")[0],
        "describe": document("describe", "billing"),
        "check": document("check", "billing", "--lag", 0),
        "tail": json.loads(run("tail", "--json")[0].splitlines()[0]),
        "audit": document("audit", "billing"),
        "doctor": document("doctor")[0],
        "reset": document("reset", "billing", "--shift-by", -1)[0],
        "pause": document("pause", "billing")[0],
        "resume": document("resume", "billing")[0],
        "scale": document("scale", "billing", "--to", 2)[0],
        "forget": document("forget", "billing")[0],
        "parked": document("parked", "scripted")[0],
        "redrive": document("redrive", "scripted", "--key", 1),
        "discard": document(
            "discard", "scripted", "--position", first_parked(), "--reason", "test"
        ),
        "segments": document("segments")[0],
        "skip": document("skip", "shipping", "--position", publish_for_skip(), "--reason", "test"),
    }
    text = (DOCS / "operations.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", text, re.MULTILINE))

    assert {verb: list(value) for verb, value in found.items()} == KEYS
    assert {verb: re.findall(r"`(\w+)`", keys) for verb, keys in documented.items()} == KEYS
    assert set(KEYS) <= {verb.name for verb in VERBS}


def first_parked():
    return document("parked", "scripted")[0]["position"]


def publish_for_skip():
    register([consumers.shipping], "default")
    return document("reset", "shipping", "--to-latest", "--execute") and publish_orders()[0]


def test_the_parts_of_a_description_have_the_keys_that_are_documented(connect):
    """Ranges, workers, horizon and actions, each with what the docs list."""
    session, publisher = connect(), connect()
    execute(session, "SET application_name = 'outbox:billing host:1'")
    register([consumers.billing], "default")
    pauses.pause("billing")
    execute(publisher, "BEGIN")
    insert(publisher)
    publish_orders()
    found = document("describe", "billing")
    text = (DOCS / "operations.md").read_text()
    parts = {
        "ranges": found["ranges"][0],
        "workers": found["workers"][0],
        "horizon": found["horizon"],
        "held_by": found["horizon"]["held_by"],
        "actions": found["actions"][0],
        "channels": document("audit", "billing")["channels"][0],
    }
    documented = dict(re.findall(r"^- `(\w+)`: (.*(?:\n  .*)*)$", text, re.MULTILINE))

    assert {part: list(value) for part, value in parts.items()} == {
        part: re.findall(r"`(\w+)`", keys) for part, keys in documented.items()
    }


def test_every_command_in_the_docs_is_accepted():
    """Each line of the pages that runs a verb names one that is there, with options it takes."""
    parser = load_command_class("outbox", "outbox").create_parser("manage.py", "outbox")
    commands = [
        line.partition("manage.py outbox ")[2].partition(" |")[0].partition(" #")[0]
        for page in sorted(DOCS.glob("*.md"))
        for line in page.read_text().splitlines()
        if line.startswith("$ ") and "manage.py outbox " in line
    ]
    for command in commands:
        parser.parse_args(shlex.split(command))

    assert {command.split()[0] for command in commands} >= set(KEYS)


class Terminal(StringIO):
    """An output that is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [100, 110])
def test_a_screenful_of_groups_fits_into_the_terminal(monkeypatch, columns):
    """Even with long names and large numbers: the names are cut for it. Nothing is cut elsewhere."""
    monkeypatch.setenv("COLUMNS", str(columns))
    register([consumers.billing, consumers.shipping], "default")
    before = message_log.last_position("default")
    execute(connection, "SELECT setval('outbox_message_position_seq', 1234567890)")
    Cursor.objects.filter(group="shipping").update(
        group="a-group-with-a-name-that-is-rather-long-and-goes-on-and-on", position=1234567890
    )
    publish_orders(3)
    screen = Terminal()
    call_command("outbox", "groups", stdout=screen, stderr=StringIO(), no_color=True)
    output, uncut = screen.getvalue(), run("groups")[0]
    execute(connection, "SELECT setval('outbox_message_position_seq', %s)", max(before, 1))
    header, *lines = output.splitlines()

    assert max(map(len, output.splitlines())) <= columns
    assert "that-is-rather-long-and-goes-on-and-on" in uncut
    assert "that-is-rather-long-and-goes-on-and-on" not in output
    assert header.split() == (
        [
            "GROUP",
            "STATUS",
            "POSITION",
            "HEAD",
            "LAG",
            "LAG-SECONDS",
            "RATE/S",
            "PARKED",
            "WORKERS",
            "LAST-COMMIT",
        ]
    )
    assert lines[0].startswith("a-group-with-a-n")
    assert re.match(r"billing +stopped +0 +\d+ +3 +0\.\d +0\.0 +0 +0 +\d s ago", lines[1])


def test_groups_tells_which_were_declared_and_never_ran():
    """They have no cursor and no line; the narration names them."""
    register([consumers.billing], "default")
    output, narration = run("groups")

    assert "shipping" not in output
    assert "no worker has run for: " in narration
    assert "shipping" in narration


def test_describe_shows_the_horizon_and_the_last_action(connect):
    """Who holds it back, since when and with which statement; who paused the group and why."""
    register([consumers.billing], "default")
    run("pause", "billing", "--reason", "deploy of the week")
    publisher = connect()
    execute(publisher, "SET application_name = 'nightly import'")
    execute(publisher, "BEGIN")
    insert(publisher)
    publish_orders(2)
    output, _ = run("describe", "billing")

    assert re.search(r"^STATUS +paused: until resumed$", output, re.MULTILINE)
    assert re.search(
        r"^HORIZON +\d+ of \d+, held back by pid \d+ 'nightly import'$", output, re.MULTILINE
    )
    assert re.search(r"^ +idle in transaction for \d+ s since \d{4}-", output, re.MULTILINE)
    assert re.search(r"^ +INSERT INTO outbox_message", output, re.MULTILINE)
    assert re.search(r"^ACTION +pause by .* \d+ s ago deploy of the week$", output, re.MULTILINE)
    assert re.search(r"^orders +0-32767  paused", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("part", "header"),
    [
        ("--ranges", "CHANNEL SLOTS STATUS POSITION LAG LAG-SECONDS RATE/S PARKED OWNER"),
        ("--workers", "WORKER PID HOST CONNECTED STATE IN-TRANSACTION"),
        ("--parked", "POSITION CHANNEL KEY TYPE REASON ATTEMPTS PARKED ERROR"),
    ],
)
def test_describe_shows_only_the_part_that_is_asked_for(part, header):
    """The first line is the header of that table."""
    register([consumers.crew], "default")
    output, _ = run("describe", "crew", part)

    assert output.splitlines()[0].split() == header.split()
    assert len(output.splitlines()) == (5 if part == "--ranges" else 1)


def test_data_and_narration_are_kept_apart():
    """With `--json` stdout holds one document, whatever is said beside it."""
    publish_orders()
    drain("billing")
    output, narration = run("reset", "billing", "--to-position", 10**12, "--json")

    assert len(json.loads(output)) == 1
    assert "A dry run" in narration
    assert "as far as the log goes" in narration


def test_exit_code_3_tells_that_a_check_failed():
    """A threshold that is past, an audit that fails; 0 otherwise."""
    publish_orders(3)
    register([consumers.billing], "default")
    Cursor.objects.filter(group="billing").update(position=message_log.last_position("default"))
    publish_orders(0)

    assert run("check", "shipping", "--lag", 3)
    assert code_of("check", "shipping", "--lag", 2) == 3
    assert code_of("audit", "billing") == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["describe", "nobody"],
        ["check", "billing"],
        ["reset", "nobody", "--to-latest"],
        ["reset", "billing", "--from-file", "/nowhere/positions.csv"],
        ["reset", "billing", "--to-latest", "--channel", "nowhere"],
        ["pause", "billing", "--until", "2020-01-01T00:00:00Z"],
        ["scale", "billing", "--to", "100000"],
        ["redrive", "nobody", "--all"],
    ],
    ids=" ".join,
)
def test_exit_code_2_tells_of_wrong_usage(arguments):
    """A group, channel, file, time or number that cannot be."""
    assert code_of(*arguments) == 2


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["reset", "billing", "--to-datetime", "2020-01-01T00:00:00"], "has no time zone"),
        (["reset", "billing", "--by-duration", "soon"], "is not a duration like PT30M"),
        (["reset", "billing"], "one of the arguments --to-earliest"),
        (["tail", "--from", "yesterday"], "is not a time like"),
        (["groups", "--database", "nowhere"], "choose from"),
    ],
)
def test_wrong_arguments_are_explained(arguments, hint):
    """The parser's own refusals have the same exit code, and say what would be right."""
    command = load_command_class("outbox", "outbox")
    command._called_from_command_line = True
    parser = command.create_parser("manage.py", "outbox")
    narration = StringIO()
    with contextlib.redirect_stderr(narration), pytest.raises(SystemExit) as left:
        parser.parse_args(arguments)

    assert left.value.code == 2
    assert hint in narration.getvalue()


def test_exit_code_1_tells_of_an_error():
    """A server that does not answer, or a message that is not there."""
    down = manage("outbox", "groups", DATABASE_URL="postgres://postgres@/x?host=/nowhere")

    assert (down.returncode, down.stdout) == (1, "")
    assert down.stderr.startswith("CommandError: Database 'default': ")
    assert code_of("skip", "billing", "--position", 10**9, "--reason", "none") == 1
    assert code_of("discard", "billing", "--position", 10**9, "--reason", "none") == 1


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_honoured(environment, coloured, monkeypatch):
    """Colours only where they are wanted: NO_COLOR turns off what Django would switch on."""
    monkeypatch.setattr("django.core.management.color.supports_color", lambda: True)
    for name, content in environment.items():
        monkeypatch.setenv(name, content)
    monkeypatch.setenv("DJANGO_COLORS", "dark")
    register([consumers.billing], "default")
    command = load_command_class("outbox", "outbox")
    output = StringIO()
    output.isatty = lambda: True
    call_command(command, "groups", stdout=output)

    assert ("\x1b[" in output.getvalue()) is coloured


def test_pause_and_resume_hold_a_group_and_let_it_go():
    """Nothing is handled in between, and both leave a record with the reason."""
    positions = publish_orders(2)
    register([consumers.billing], "default")
    run("pause", "billing", "--reason", "deploy")
    paused = drain("billing")
    run("resume", "billing")
    drain("billing")
    records = [
        (each.action, each.details["reason"]) for each in OperatorAction.objects.order_by("id")
    ]

    assert paused == 0
    assert handled("billing") == positions
    assert records == [("pause", "deploy"), ("resume", "")]


def test_a_pause_without_an_end_lasts_until_resume():
    """Under PAUSED-UNTIL `pause` shows what ends it, `resume` nothing; neither says that it was resumed."""
    register([consumers.billing], "default")
    lines = [run(verb, "billing")[0].splitlines() for verb in ("pause", "resume")]

    assert [header.split()[-1] for header, _ in lines] == ["PAUSED-UNTIL", "PAUSED-UNTIL"]
    assert lines[0][1].endswith(" until resume")
    assert lines[1][1].split()[-1] == "-"


def test_a_pause_ends_at_its_time_and_of_one_channel_only():
    """`--until` needs no resume; `--channel` leaves the others alone."""
    register([consumers.audit], "default")
    (row,) = document("pause", "audit", "--channel", "payments", "--until", "2990-01-01T00:00:00Z")
    (resumed,) = document("resume", "audit")

    assert (row["channel"], row["paused_until"]) == ("payments", "2990-01-01T00:00:00+00:00")
    assert (resumed["channel"], resumed["paused_until"]) == ("payments", None)
    assert run("resume", "audit")[1] == "Nothing was paused.\n"


def test_a_sleeping_worker_wakes_up_for_a_resume(connect, settings):
    """It does not wait for its next look at the log."""
    settings.OUTBOX = {"POLL_INTERVAL": 600.0}
    session = connect()
    register([consumers.billing], "default")
    pauses.pause("billing")
    publish_orders()
    running = worker("billing")
    thread = Background(running.run)
    try:
        wait_until(
            lambda: execute(
                session,
                "SELECT pid FROM pg_locks WHERE locktype = 'advisory'"
                " AND classid::bigint >> 16 = 20297",
            )
        )
        pauses.resume("billing")
        wait_until(lambda: handled("billing"))
    finally:
        running.stop()
        thread.join(120)

    assert running.wakeups.poll_interval == 600


def test_tail_shows_the_last_messages_in_order():
    """Ten by default, of a channel, a key or a type when asked."""
    positions = publish_orders(12)
    with transaction.atomic():
        paid = outbox.publish_raw("payments", "PaymentTaken", {"order_id": 1}, key=3)
    lines = run("tail")[0].splitlines()

    assert [int(line.split()[0]) for line in lines] == [*positions[-9:], paid]
    assert re.fullmatch(
        rf'{paid} \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}} payments PaymentTaken 3 {{"order_id":1}}',
        lines[-1],
    )
    assert [m["position"] for m in tailed("orders", "-n", 2)] == positions[-2:]
    assert [m["position"] for m in tailed("--key", 3)] == [positions[3], paid]
    assert [m["position"] for m in tailed("--type", "PaymentTaken")] == [paid]


def tailed(*arguments):
    return [json.loads(line) for line in run("tail", *arguments, "--json")[0].splitlines()]


def test_tail_reads_from_where_it_is_told():
    """The earliest message, a position, a time, or nothing before now."""
    positions = publish_orders(12)

    assert [m["position"] for m in tailed("--from", "earliest")] == positions
    assert [m["position"] for m in tailed("--from", positions[5])] == positions[5:]
    assert [m["position"] for m in tailed("--from", "2000-01-01T00:00:00Z")] == positions
    assert tailed("--from", "latest") == tailed("--from", "2990-01-01T00:00:00Z") == []


def test_tail_shows_nothing_above_the_horizon(connect):
    """A later look would not show what appears below it, so it waits."""
    publisher = connect()
    execute(publisher, "BEGIN")
    insert(publisher)
    publish_orders(2)
    before = tailed("--from", "earliest")
    execute(publisher, "COMMIT")

    assert before == []
    assert len(tailed("--from", "earliest")) == 3


def test_tail_follows_the_log_without_leaving_anything_out(connect):
    """Messages that appear later come in the order of their positions, until an interrupt."""
    publisher, session = connect(), connect()
    execute(publisher, "BEGIN")
    held = insert(publisher)
    first = publish_orders(2)
    following = start_manage("outbox", "tail", "orders", "--follow", "--from", str(held), "--json")
    try:
        wait_until(lambda: tail_sessions(session))
        execute(publisher, "COMMIT")
        later = publish_orders(1)
        seen = [json.loads(following.stdout.readline())["position"] for _ in range(4)]
        following.send_signal(2)
        assert following.wait(120) == 0
    finally:
        following.kill()
        following.communicate()

    assert seen == [held, *first, *later]


def tail_sessions(session):
    return execute(
        session,
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND query LIKE '%ORDER BY position%' AND pid <> pg_backend_pid()",
    )


def test_changes_are_recorded_with_who_made_them(script, settings):
    """Each verb that changes something leaves one row; those that only look leave none."""
    settings.OUTBOX = {"OPERATOR": "ann"}
    made = script(retry=outbox.Retry(max_attempts=1))
    made.faults = {"1": ValueError("not now"), "2": ValueError("not now")}
    publish_trouble("1", "2")
    made.drain()
    for verb in ("groups", "segments", "doctor", "tail"):
        run(verb)
    run("parked", "scripted")
    run("redrive", "scripted", "--all", "--dry-run")
    run("reset", "scripted", "--to-earliest")
    looked = OperatorAction.objects.count()
    again = code_of("redrive", "scripted", "--all")
    run("discard", "scripted", "--position", first_parked(), "--reason", "spam")
    run("scale", "scripted", "--to", 2)
    run("pause", "scripted")
    run("resume", "scripted")
    run("reset", "scripted", "--to-earliest", "--execute")
    records = OperatorAction.objects.order_by("id").values_list("actor", "action", "group")

    assert looked == 0
    assert again == 3
    assert list(records) == [
        ("ann", action, "scripted")
        for action in ("redrive", "discard", "scale", "pause", "resume", "reset")
    ]


def test_parked_messages_are_summed_up_by_error_first(script):
    """Then each of them; one is shown in full with its payload and traceback; filters choose."""
    made = script(retry=outbox.Retry(max_attempts=1))
    made.faults = {"1": ValueError("no order " + "x" * 200), "2": KeyError("customer")}
    publish_trouble("1", "1", "2")
    made.drain()
    listed = run("parked", "scripted")[0].splitlines()
    full = run("parked", "scripted", "--position", first_parked())[0]
    later = "2100-01-01T00:00:00+00:00"
    chosen = {
        options: len(document("parked", "scripted", *options.split()))
        for options in (
            "--error KeyError",
            "--error customer",
            "--reason blocked",
            "--key 1",
            f"--since {later}",
            f"--until {later}",
        )
    }

    assert listed[0].split() == [
        "MESSAGES",
        "KEYS",
        "FIRST",
        "TYPE",
        "REASON",
        "LAST-PARKED",
        "ERROR",
    ]
    assert [line.split()[0] for line in listed[1:4]] == ["1", "1", "1"]
    assert "x" * 200 in listed[1]
    assert "Traceback (most recent call last):" in full
    assert "PAYLOAD" in full
    assert list(chosen.values()) == [1, 1, 1, 2, 0, 3]


def test_discard_by_key_and_of_all(script):
    """A dry run counts; the account of the group holds afterwards."""
    made = script(retry=outbox.Retry(max_attempts=1))
    made.faults = {"1": ValueError("no"), "2": ValueError("no")}
    publish_trouble("1", "1", "2", "2", "2")
    made.drain()
    counted = document("discard", "scripted", "--key", 1, "--reason", "x", "--dry-run")
    before = len(document("parked", "scripted"))
    of_key = document("discard", "scripted", "--key", 1, "--reason", "spam")
    run("discard", "scripted", "--all", "--reason", "the rest")

    assert counted == of_key
    assert (before, of_key["messages"], of_key["keys"]) == (5, 2, 1)
    assert document("parked", "scripted") == []
    assert document("audit", "scripted")["passed"]
    assert code_of("discard", "scripted", "--all", "--reason", "x") == 1


def test_the_actor_is_the_user_and_host_of_the_process():
    """Without the setting OPERATOR."""
    register([consumers.billing], "default")
    run("pause", "billing")

    assert re.fullmatch(r".+@.+", OperatorAction.objects.get().actor)


def test_a_table_sets_words_left_and_numbers_right():
    """The columns are as wide as their widest cell; nothing trails."""
    output = StringIO()
    command = load_command_class("outbox", "outbox")
    wrapper = type(command.stdout)(output)
    Printer(wrapper, wrapper, command.style, False).table(
        "<NAME COUNT <NOTE", [["a", 1000, None], ["longer", 2, "two\nlines"]]
    )

    assert output.getvalue() == "NAME    COUNT  NOTE\na        1000  -\nlonger      2  two lines\n"


CONTROLS = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\n\t\u202eevil"


@pytest.mark.parametrize("verb", ["tail", "parked"])
def test_no_verb_hands_control_characters_to_a_terminal(script, verb):
    """Those of keys, payloads and errors are written as escapes, in tables and in JSON."""
    made = script(retry=outbox.Retry(max_attempts=1))
    made.faults = {CONTROLS: ValueError(CONTROLS)}
    publish_trouble(CONTROLS)
    made.drain()
    group = ["scripted"] if verb == "parked" else []
    text, document_text = run(verb, *group)[0], run(verb, *group, "--json")[0]
    written = (text + document_text).replace("\n", "")

    assert [char for char in written if not char.isprintable()] == []
    assert "evil" in text
    assert json.loads(document_text.splitlines()[0])


def test_groups_are_watched_until_ctrl_c(start_command):
    """The table comes again and again, with a line of totals; Ctrl-C ends it without an error."""
    register([consumers.billing, consumers.shipping], "default")
    process = start_command("outbox", "groups", "--watch", "0.1")
    seen = [process.stdout.readline() for _ in range(9)]
    process.send_signal(signal.SIGINT)
    code = process.wait(120)

    assert sum(line.startswith("GROUP") for line in seen) >= 2
    assert any(line.startswith("total") for line in seen)
    assert code == 0


def test_describe_names_the_last_error_and_the_way_out(script):
    """Beside a failing message the command that leaves it out, beside parked ones those for them."""
    made = script(retry=outbox.Retry(base=300))
    made.faults = {"1": ValueError("no such order")}
    publish_trouble("1")
    made.drain()
    failing = run("describe", "scripted")[0]
    run("pause", "scripted")

    assert "ValueError: no such order" in failing
    assert "outbox skip scripted --position" in failing
    assert "outbox resume scripted" in run("describe", "scripted")[0]
    assert "ValueError: no such order" in run("describe", "scripted")[0]
