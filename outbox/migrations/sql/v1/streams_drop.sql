DROP FUNCTION outbox_lock_stream_v1(text, text, boolean);
DROP FUNCTION outbox_append_to_stream_v1(text, text, text, text, text, bigint, bigint);
DROP FUNCTION outbox_count_appends_v1(text, text, bigint);
DROP FUNCTION outbox_guard_stream_v1(text, text);
DROP FUNCTION outbox_own_appends_v1(text, text);
DROP FUNCTION outbox_own_appends_setting();
