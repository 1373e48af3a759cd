-- What is late and why, and whether the counts are right.

-- name: see_ranges
-- Reads the cursors; walks outbox_message_by_channel up to a number of messages for all of them.
SELECT
    id, "group", channel, slot_from, slot_to, position, max_position, generation, processed,
    skipped, parked, attempts, last_error, failed_position, retry_at, paused_until, leased_until, leased_by,
    last_served_at, last_commit_at, rate, backlog.messages, backlog.is_lower_bound, backlog.oldest,
    clock_timestamp() AS now, outbox_last_position() AS last_position,
    COALESCE((
        SELECT r.removed_to FROM outbox_channel_retention AS r
        WHERE r.channel = outbox_cursor.channel
    ), 0) AS removed_to
FROM outbox_cursor
CROSS JOIN LATERAL outbox_backlog(
    channel, position, slot_from, slot_to,
    GREATEST(%(least)s, %(budget)s / (
        SELECT count(*) FROM outbox_cursor WHERE %(group)s::text IS NULL OR "group" = %(group)s
    ))
) AS backlog
WHERE %(group)s::text IS NULL OR "group" = %(group)s
ORDER BY "group", channel, slot_from

-- name: see_backlog
-- Walks outbox_message_by_channel: all that a group without a cursor has before it.
SELECT
    COALESCE(sum(messages), 0)::bigint,
    COALESCE(bool_or(is_lower_bound), false),
    GREATEST(extract(epoch FROM clock_timestamp() - min(oldest)), 0)::float8
FROM unnest(%(channels)s::text[]) AS of (channel)
CROSS JOIN LATERAL outbox_backlog(
    channel, 0, 0, 32767, %(most)s / cardinality(%(channels)s::text[])
)

-- name: count_types
-- Walks outbox_message_by_channel backwards from a position of each channel; takes no lock.
SELECT of.channel, latest.type, count(*)
FROM unnest(%(channels)s::text[], %(ends)s::bigint[]) AS of (channel, until)
CROSS JOIN LATERAL (
    SELECT type
    FROM outbox_message
    WHERE channel = of.channel AND position <= of.until
    ORDER BY position DESC
    LIMIT %(most)s
) AS latest
GROUP BY of.channel, latest.type

-- name: see_workers
-- Reads the sessions of this database that call themselves workers, and the claims they hold.
SELECT
    pid, rtrim(application_name, '*'), COALESCE(host(client_addr), 'local'), backend_start,
    COALESCE(state, ''),
    extract(epoch FROM GREATEST(clock_timestamp() - xact_start, interval '0'))::float8,
    COALESCE(claims.cursors, '{}')
FROM pg_stat_activity
LEFT JOIN (
    SELECT pid, array_agg(outbox_cursor.id) AS cursors
    FROM pg_locks
    JOIN outbox_cursor ON outbox_claim_number(outbox_cursor.id) = objid::bigint
    WHERE locktype = 'advisory' AND objsubid = 2 AND classid = 20291 AND granted
    GROUP BY pid
) AS claims USING (pid)
WHERE datname = current_database() AND starts_with(application_name, 'outbox:')
ORDER BY pid

-- name: see_floors
-- Reads the lock table, the sessions and the prepared transactions; the lowest floor first.
SELECT
    floors.floor,
    floors.pid,
    COALESCE(application_name, ''),
    COALESCE(usename, owner, ''),
    COALESCE(state, CASE WHEN gid IS NULL THEN '' ELSE 'prepared' END),
    COALESCE(prepared, xact_start),
    GREATEST(extract(epoch FROM clock_timestamp() - COALESCE(prepared, xact_start)), 0)::float8,
    COALESCE(query, ''),
    COALESCE(gid, ''),
    CASE WHEN channel_hash <> outbox_floor_hash('') THEN ARRAY(
        SELECT DISTINCT channel::text FROM outbox_cursor
        WHERE outbox_floor_hash(channel) = channel_hash
        ORDER BY 1
    ) END
FROM outbox_last_position() AS last_position
CROSS JOIN LATERAL outbox_floors(last_position) AS floors
LEFT JOIN pg_stat_activity ON pg_stat_activity.pid = floors.pid
LEFT JOIN pg_locks AS own
    ON floors.pid IS NULL
   AND own.pid IS NULL
   AND own.locktype = 'transactionid'
   AND own.virtualtransaction = floors.virtualtransaction
LEFT JOIN pg_prepared_xacts ON transaction = own.transactionid
ORDER BY floors.floor, COALESCE(prepared, xact_start)

-- name: audit_ranges
-- One snapshot of cursors, parked messages and the log; walks outbox_message_by_channel.
SELECT
    c.channel, c.slot_from, c.slot_to, c.counted_from, c.position, c.processed, c.skipped,
    c.parked,
    (
        SELECT count(*)
        FROM outbox_parked_message AS p
        WHERE p."group" = c."group"
          AND p.channel = c.channel
          AND p.slot BETWEEN c.slot_from AND c.slot_to
    ),
    (
        SELECT count(*)
        FROM outbox_parked_message AS p
        WHERE p."group" = c."group"
          AND p.channel = c.channel
          AND p.slot BETWEEN c.slot_from AND c.slot_to
          AND p.position > c.counted_from
    ),
    (
        SELECT count(*)
        FROM outbox_message AS m
        WHERE m.channel = c.channel
          AND m.position > c.counted_from
          AND m.position <= c.position
          AND m.slot BETWEEN c.slot_from AND c.slot_to
    ),
    EXISTS (
        SELECT FROM outbox_channel_retention AS r
        WHERE r.channel = c.channel AND r.removed_to > c.counted_from
    )
FROM outbox_cursor AS c
WHERE c."group" = %(group)s
ORDER BY c.channel, c.slot_from

-- name: failing_ranges
-- Reads the cursors; counts by outbox_message_by_channel up to a number of messages.
SELECT
    "group", channel, failed_position, attempts, last_error, backlog.messages,
    backlog.is_lower_bound
FROM outbox_cursor
CROSS JOIN LATERAL outbox_backlog(channel, position, slot_from, slot_to, %(most)s) AS backlog
WHERE "group" = ANY(%(groups)s::text[]) AND attempts > 0 AND failed_position > position
ORDER BY "group", channel, slot_from

-- name: oldest_snapshot
-- Reads the sessions of this database: the one whose snapshot keeps the most dead rows.
SELECT
    pid,
    COALESCE(application_name, ''),
    COALESCE(usename, ''),
    COALESCE(state, ''),
    GREATEST(extract(epoch FROM clock_timestamp() - COALESCE(xact_start, query_start)), 0)::float8,
    COALESCE(query, '')
FROM pg_stat_activity
WHERE datname = current_database()
  AND backend_xmin IS NOT NULL
  AND pid <> pg_backend_pid()
ORDER BY age(backend_xmin) DESC, xact_start
LIMIT 1

-- name: end_session
-- Ends a session of this database while it is in the transaction that began then.
SELECT pg_terminate_backend(pid)
FROM pg_stat_activity
WHERE pid = %(pid)s AND datname = current_database() AND xact_start = %(since)s
