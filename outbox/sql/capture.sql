-- Captured tables: their triggers and their snapshots.

-- name: read_committed
-- Each statement of the transaction sees what was committed before it; must be its first one.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED

-- name: estimate_rows
-- Reads the catalog: the planner's guess at the rows of a table, 0 before the first ANALYZE.
SELECT COALESCE(
    (SELECT GREATEST(reltuples, 0)::bigint FROM pg_class
     WHERE oid = to_regclass(%(table)s)),
    0
)

-- name: see_captured_table
-- Reads the catalog: the table's number, null without it; its schema, null where it is the log's;
-- whether statements may name another table for its rows, a partition or a child; and whether its
-- triggers can see rows, those of a view or of a foreign table cannot.
SELECT
    c.oid::bigint,
    CASE WHEN c.relnamespace <> log.relnamespace THEN n.nspname END,
    c.relkind = 'p' OR EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid),
    c.relkind IN ('r', 'p')
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_class AS log ON log.oid = to_regclass('outbox_message')
WHERE c.oid = to_regclass(%(table)s)

-- name: see_capture_trigger
-- Reads the catalog: whether it fires, its text, and whether its function finds the log.
SELECT
    t.tgenabled IN ('O', 'A'),
    obj_description(t.oid, 'pg_trigger'),
    p.prosrc,
    EXISTS (
        SELECT
        FROM unnest(p.proconfig) AS setting,
            string_to_table(substr(setting, length('search_path=') + 1), ', ') AS schema
        WHERE starts_with(setting, 'search_path=')
          AND to_regclass(schema || '.outbox_message') IS NOT NULL
    )
FROM pg_trigger AS t
JOIN pg_proc AS p ON p.oid = t.tgfoid
WHERE t.tgrelid = to_regclass(%(table)s) AND t.tgname = %(name)s

-- name: list_capture_triggers
-- Reads the catalog: the capture triggers on the tables of the search path.
SELECT t.tgrelid::bigint, t.tgrelid::regclass::text, t.tgname
FROM pg_trigger AS t
JOIN pg_proc AS p ON p.oid = t.tgfoid
WHERE starts_with(t.tgname::text, 'pgtrigger_outbox_')
  AND position('INSERT INTO outbox_message' IN p.prosrc) > 0
  AND t.tgparentid = 0
  AND pg_table_is_visible(t.tgrelid)
ORDER BY 2, 3
