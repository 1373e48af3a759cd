-- Captured rows.
-- Frozen from the first release on: a change is a new file.

-- A captured row as jsonb; the given key instead of a row that jsonb cannot hold, or that would
-- leave no room for another one beside it (jsonb ends at 256 MB).
CREATE FUNCTION outbox_row_image(source record, key jsonb) RETURNS jsonb LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    image jsonb;
BEGIN
    image := to_jsonb(source);
    RETURN CASE WHEN pg_column_size(image) < 130000000 THEN image ELSE key END;
EXCEPTION WHEN program_limit_exceeded OR internal_error THEN
    RETURN key;
END
$$;
