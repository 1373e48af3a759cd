-- The capture triggers, as templates; `capture` fills the braces. The rows of a statement are the
-- transition tables old_values and new_values.

-- name: trigger
-- Muted by pgtrigger.ignore(), which lists the triggers' names in a setting. OLD and NEW, which a
-- condition speaks of, are rows of the queries here; the variables of these names are null. Names
-- are those of the search_path at installation, whatever the writer's; of it pg_temp comes last.
CREATE OR REPLACE FUNCTION {pgid}() RETURNS trigger LANGUAGE plpgsql AS $outbox$
#variable_conflict use_column
BEGIN
    IF TG_NAME = ANY (NULLIF(current_setting('pgtrigger.ignore', true), '')::text[]) THEN
        RETURN NULL;
    END IF;
    {func}
    RETURN NULL;
END
$outbox$;
DO $outbox$
BEGIN
    EXECUTE 'ALTER FUNCTION {pgid}() SET search_path = ' || (
        SELECT string_agg(quote_ident(name), ', ' ORDER BY number)
        FROM unnest(array_append(current_schemas(false), 'pg_temp'))
            WITH ORDINALITY AS path (name, number)
    );
END
$outbox$;
DROP TRIGGER IF EXISTS {pgid} ON {table};
CREATE TRIGGER {pgid} {when} {operation} ON {table} {referencing} FOR EACH {level}
EXECUTE FUNCTION {pgid}();
COMMENT ON TRIGGER {pgid} ON {table} IS '{hash}';

-- name: append
-- The floor of its channel alone is taken.
PERFORM set_config('outbox.channels', ARRAY[{channel}]::text, true);
INSERT INTO outbox_message (channel, key, type, payload)
SELECT {channel}, {key}, {type},
    jsonb_build_object('operation', {operation}, 'old', {old}, 'new', {new})
FROM {source};
PERFORM set_config('outbox.channels', '', true);

-- name: append_if_any
-- An insert of no rows would take a floor, too.
IF EXISTS (SELECT FROM {found}) THEN {append} END IF;

-- name: rows
{operand}_values AS {operand} WHERE {condition}

-- name: pairs
-- PostgreSQL fills both transition tables in step, so the n-th old row became the n-th new one.
-- A FULL JOIN cannot be a nested loop, whatever number of rows the plan was made for; COALESCE
-- and CASE hide from the planner that a condition would let it be less than full.
(SELECT row_number() OVER () AS outbox_ordinal, * FROM old_values) AS old
FULL JOIN (SELECT row_number() OVER () AS outbox_ordinal, * FROM new_values) AS new
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
