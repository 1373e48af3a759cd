-- Names in the functions of these files resolve in the log's schema, for any search_path of the
-- caller.
-- Frozen from the first release on: a change is a new file.

-- Bodies from BEGIN ATOMIC to END are bound when they are created. PL/pgSQL is bound when it runs:
-- such a function keeps the path below (SET search_path FROM CURRENT). pg_temp stands last, since
-- it is searched first where it is not named. 09_names.sql puts the session's path back.
SELECT
    set_config('outbox.search_path', current_setting('search_path'), true),
    set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);
