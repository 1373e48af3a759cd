-- The session's own search_path again (00_names.sql).
-- Frozen from the first release on: a change is a new file.

SELECT set_config('search_path', current_setting('outbox.search_path'), true);
