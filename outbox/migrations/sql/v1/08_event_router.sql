-- The log with the columns that Debezium's outbox event router expects, for readers by SQL such as a
-- polling connector. Logical decoding knows tables only: it reads outbox_message itself.
-- id: the position as a UUID. aggregateid: the key, or the position of a message without one.
-- tracingspancontext: the trace as the text of a Java properties file.
-- Frozen from the first release on: a change is a new file.

-- The log with the columns of the Debezium outbox event router, for readers by SQL.
CREATE VIEW outbox_event_router AS
SELECT
    lpad(to_hex(position), 32, '0')::uuid AS id,
    channel AS aggregatetype,
    COALESCE(key, position::text) AS aggregateid,
    type,
    payload,
    created_at AS timestamp,
    'traceparent=' || (headers ->> 'traceparent') AS tracingspancontext,
    headers,
    position
FROM outbox_message;
