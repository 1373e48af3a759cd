DROP FUNCTION outbox_rename_v1(text, text);
DROP FUNCTION outbox_insert_archived_v1(text, json);
DROP FUNCTION outbox_segment_has_key_v1(bigint, text, text);
DROP FUNCTION outbox_copy_segment_v1(
    bigint, text, text[], text[], text[], bigint, text, text
);
DROP FUNCTION outbox_segment_channels_v1(bigint);
DROP FUNCTION outbox_promote_default_v1(bigint, bigint, text);
DROP FUNCTION outbox_swap_segment_v1(text, bigint, bigint);
DROP FUNCTION outbox_drop_segment_v1(bigint);
DROP FUNCTION outbox_attach_v1(text, bigint, bigint);
DROP FUNCTION outbox_drop_promise_v1(text);
DROP FUNCTION outbox_validate_range_v1(text);
DROP FUNCTION outbox_promise_range_v1(text, bigint, bigint);
DROP FUNCTION outbox_guard_segment_v1(text);
DROP FUNCTION outbox_make_table_v1(text);
DROP FUNCTION outbox_segment_name_v1(bigint);
