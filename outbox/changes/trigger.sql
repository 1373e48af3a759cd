-- Templates of the capture triggers; `trigger_sql` fills the braces. The rows of a statement are the
-- transition tables old_values and new_values.

-- name: install
-- The function keeps the search path of the session that installs it, resolved and with temporary
-- objects last, so that it finds the log in every session. Older captures of the same channel and
-- operation, left by a renamed or moved model, would store each change twice.
CREATE OR REPLACE FUNCTION {pgid}() RETURNS trigger LANGUAGE plpgsql AS $outbox${body}$outbox$;
DO $outbox$
DECLARE
    sibling name;
BEGIN
    EXECUTE 'ALTER FUNCTION {pgid}() SET search_path = '
        || (SELECT string_agg(quote_ident(schema) || ', ', '') FROM unnest(current_schemas(false)) AS schema)
        || 'pg_temp';
    FOR sibling IN
        SELECT tgname FROM pg_trigger
        WHERE tgrelid = {table_literal}::regclass
          AND tgname ~ '^pgtrigger_{name}_[0-9a-f]{{5}}$'
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', sibling, {table_literal}::regclass);
    END LOOP;
END
$outbox$;
CREATE TRIGGER {pgid} AFTER {operation} ON {table} {referencing} FOR EACH STATEMENT
EXECUTE FUNCTION {pgid}();
COMMENT ON TRIGGER {pgid} ON {table} IS '{hash}';

-- name: body
-- Muted by pgtrigger.ignore(), which lists the triggers' names in a setting. OLD and NEW, which a
-- condition uses, are rows of the queries here; the variables of these names are null.
-- A statement that a trigger ran within this one was captured before it: outbox.depth_… is the
-- deepest such statement on the table in this transaction. Then the rows are read again.
-- The headers name the schema of the table when the log is in another one.
#variable_conflict use_column
DECLARE
    outbox_headers jsonb := outbox_context();
    outbox_depth integer := NULLIF(current_setting('outbox.depth_' || TG_RELID, true), '');
BEGIN
    IF TG_NAME = ANY (NULLIF(current_setting('pgtrigger.ignore', true), '')::text[]) THEN
        RETURN NULL;
    END IF;
    IF to_regclass(quote_ident(TG_TABLE_SCHEMA) || '.outbox_message') IS NULL THEN
        outbox_headers := jsonb_build_object('schema', TG_TABLE_SCHEMA) || outbox_headers;
    END IF;
    -- Of these messages the floor of their channel alone is taken.
    PERFORM set_config('outbox.channels', ARRAY[{channel}]::text, true);
    IF outbox_depth > pg_trigger_depth() THEN
        EXECUTE replace($outbox_now${append_now}$outbox_now$, '"outbox table"', TG_RELID::regclass::text)
        USING outbox_headers;
    ELSIF {found} THEN
        {append}
    END IF;
    PERFORM set_config('outbox.channels', '', true);
    IF pg_trigger_depth() > GREATEST(1, outbox_depth) THEN
        PERFORM set_config('outbox.depth_' || TG_RELID, pg_trigger_depth()::text, true);
    END IF;
    RETURN NULL;
END

-- name: uninstall
DROP TRIGGER IF EXISTS {pgid} ON {table};

-- name: enable
ALTER TABLE {table} ENABLE TRIGGER {pgid};

-- name: disable
ALTER TABLE {table} DISABLE TRIGGER {pgid};

-- name: append
INSERT INTO outbox_message (channel, key, type, payload, headers)
SELECT {channel}, {key}, {type},
    json_build_object('operation', {operation}, 'old', {old}, 'new', {new}), outbox_headers
FROM {source};

-- name: append_to_streams
-- Two statements: rows of streams are locked, in one order, before the second one takes the floor.
INSERT INTO outbox_stream AS stream (channel, key, version)
SELECT {channel}, drafts.key, outbox_count_appends_v1({channel}, drafts.key, count(*))
FROM (SELECT {key} FROM {source}) AS drafts (key)
GROUP BY drafts.key
ORDER BY drafts.key COLLATE "C"
ON CONFLICT (channel, key) DO UPDATE SET version = stream.version + excluded.version;
-- A publisher may read no column of the log but the position, and positions follow the rows' order.
WITH numbered AS MATERIALIZED (
    SELECT drafts.*, stream.version + 1
        - count(*) OVER (PARTITION BY drafts.key ORDER BY drafts.ordinal DESC) AS version
    FROM (
        SELECT row_number() OVER (), made.*
        FROM (
            SELECT {key},
                json_build_object('operation', {operation}, 'old', {old}, 'new', {new}), outbox_headers
            FROM {source}
        ) AS made
    ) AS drafts (ordinal, key, payload, headers)
    JOIN outbox_stream AS stream ON stream.channel = {channel} AND stream.key = drafts.key
), appended AS (
    INSERT INTO outbox_message AS message (channel, key, type, payload, headers)
    SELECT {channel}, numbered.key, {type}, numbered.payload,
        numbered.headers || jsonb_build_object('stream_version', numbered.version)
    FROM numbered
    ORDER BY numbered.ordinal
    RETURNING message.position
)
INSERT INTO outbox_stream_message (channel, key, version, position)
SELECT {channel}, numbered.key, numbered.version, placed.position
FROM (
    SELECT row_number() OVER (ORDER BY appended.position), appended.position FROM appended
) AS placed (ordinal, position)
JOIN numbered ON numbered.ordinal = placed.ordinal;

-- name: insert
new_values AS new

-- name: insert_now
-- Rows that no longer exist: their deletion has a message already.
(SELECT now.* FROM new_values AS told JOIN "outbox table" AS now ON {is_same}) AS new

-- name: delete
old_values AS old

-- name: delete_now
-- Rows whose key exists again: their insertion has a message already.
(SELECT told.* FROM old_values AS told
    WHERE NOT EXISTS (SELECT FROM "outbox table" AS now WHERE {is_same})) AS old

-- name: update
(SELECT row_number() OVER () AS outbox_ordinal, * FROM new_values) AS new

-- name: update_now
(SELECT told.outbox_ordinal, now.*
    FROM (SELECT row_number() OVER () AS outbox_ordinal, * FROM new_values) AS told
    JOIN "outbox table" AS now ON {is_same}) AS new

-- name: pairs
-- PostgreSQL fills both transition tables in step, so the n-th old row became the n-th new one.
-- A FULL JOIN cannot be a nested loop, whatever number of rows the plan was made for; COALESCE
-- and CASE hide from the planner that a condition would let it be less than full.
(SELECT row_number() OVER () AS outbox_ordinal, * FROM old_values) AS old
FULL JOIN {rows}
    ON old.outbox_ordinal = new.outbox_ordinal
CROSS JOIN LATERAL unnest(
    CASE WHEN {is_same_row} THEN ARRAY['update'] ELSE ARRAY['delete', 'insert'] END
) AS outbox_operation
WHERE COALESCE({condition}, false)
    AND CASE outbox_operation
        WHEN 'delete' THEN old.outbox_ordinal IS NOT NULL
        WHEN 'insert' THEN new.outbox_ordinal IS NOT NULL
        ELSE {is_changed} END

-- name: pairs_in_order
-- The deletes come first: a key may have gone from one row to another.
{pairs} ORDER BY outbox_operation <> 'delete', new.outbox_ordinal

-- name: image
-- A row beyond what jsonb can hold must not fail its own write. The size is of the compressed row.
CASE WHEN pg_column_size({row}.*) < 131072 THEN {image}
    ELSE outbox_row_image({record}, {keys}) END
