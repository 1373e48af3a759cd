-- The log's triggers, as a template; `triggers` fills the braces.

-- name: trigger
-- ENABLE ALWAYS: also where session_replication_role is replica, as in the apply process of a
-- logical replication whose row triggers publish. ONLY: a statement trigger has no copies on the
-- segments.
DROP TRIGGER IF EXISTS {pgid} ON {table};
CREATE TRIGGER {pgid} {when} {operation} ON {table} {referencing} FOR EACH {level}
EXECUTE FUNCTION {execute};
ALTER TABLE ONLY {table} ENABLE ALWAYS TRIGGER {pgid};
COMMENT ON TRIGGER {pgid} ON {table} IS '{hash}';
