DROP VIEW outbox_event_router;
DROP FUNCTION outbox_advance_v1(
    bigint, integer, bigint, bigint, text, bigint, bigint, bigint, bigint, float8, integer, bigint,
    float8, text, float8
);
DROP FUNCTION outbox_row_image(record, jsonb);
DROP FUNCTION outbox_signal_waiters(text);
DROP FUNCTION outbox_waiter_signal(text);
DROP FUNCTION outbox_waiter_key(text);
DROP FUNCTION outbox_claim_window_v1(
    text, bigint, text, bigint[], integer[], integer[], integer[], bigint, integer, bigint
);
DROP FUNCTION outbox_is_plain(outbox_cursor, bigint);
DROP FUNCTION outbox_claim_v1(
    text[], text[], bigint[], text, bigint, bigint, integer, boolean, boolean, bigint[], integer[],
    bigint[], integer[], integer[], integer[], integer[], integer, bigint
);
DROP FUNCTION outbox_woken_v1(
    text[], bigint[], bigint[], bigint[], integer[], integer[], integer[]
);
DROP FUNCTION outbox_fitting_end(text, bigint, bigint, integer, integer, bigint);
DROP FUNCTION outbox_ranges_v1(text, text);
DROP FUNCTION outbox_stand_aside_v1();
DROP FUNCTION outbox_claim_number(bigint);
DROP FUNCTION outbox_claim_of(outbox_cursor, bigint);
DROP FUNCTION outbox_check_cursor();
DROP FUNCTION outbox_mend_positions();
DROP FUNCTION outbox_log_identity_v1();
DROP FUNCTION outbox_batch_limit(outbox_cursor, bigint, bigint);
DROP FUNCTION outbox_backlog(text, bigint, integer, integer, bigint);
DROP FUNCTION outbox_next(text, bigint, bigint);
DROP FUNCTION outbox_slots(text, bigint, bigint);
DROP FUNCTION outbox_plan_mode();
DROP FUNCTION outbox_pending(text, bigint, bigint, integer, integer);
DROP FUNCTION outbox_read(text, bigint, bigint, integer, integer, integer);
DROP FUNCTION outbox_check_positions_and_notify();
DROP FUNCTION outbox_notify(text, boolean);
DROP FUNCTION outbox_is_held(bigint);
DROP FUNCTION outbox_idle_places(text[]);
DROP FUNCTION outbox_bucket_signal(text);
DROP FUNCTION outbox_bucket_key(text);
DROP FUNCTION outbox_signal_name(text);
DROP FUNCTION outbox_idle_key(text);
DROP FUNCTION outbox_horizons_v1(text[], integer);
DROP FUNCTION outbox_horizon();
DROP FUNCTION outbox_horizon_beside(integer);
DROP FUNCTION outbox_floors(bigint);
DROP FUNCTION outbox_publish_many_v1(json, text[]);
DROP FUNCTION outbox_publish_v1(text, text, text, json, jsonb);
DROP FUNCTION outbox_held_floor(text, text);
DROP FUNCTION outbox_floor_setting();
DROP FUNCTION outbox_floor_key(text, bigint);
DROP FUNCTION outbox_floor_hash(text);
DROP FUNCTION outbox_last_position();
DROP FUNCTION outbox_create_segment(bigint, bigint);
DROP FUNCTION outbox_lock_key(integer, text);
DROP FUNCTION outbox_log_number();
DROP TABLE outbox_message;
DROP FUNCTION outbox_take_floor();
DROP FUNCTION outbox_forbid_changes();
DROP FUNCTION outbox_context();
