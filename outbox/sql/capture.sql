-- Snapshots of captured tables.

-- name: read_committed
-- Each statement of the transaction sees what was committed before it; must be its first one.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED

-- name: estimate_rows
-- Reads the catalog: the planner's guess at the rows of a table, 0 before the first ANALYZE.
SELECT COALESCE(
    (SELECT GREATEST(reltuples, 0)::bigint FROM pg_class
     WHERE oid = to_regclass(quote_ident(%(table)s))),
    0
)
