-- Candles. Times are milliseconds since the epoch in UTC, dates are the integer yyyymmdd.

-- One row per instrument with candles. Writers lock it; its calendar decided the dates of all its blocks.
create table candle_series (
    series_id bigint primary key generated always as identity,
    instrument_key text collate "C" not null constraint candle_series_key unique,
    calendar text not null,
    revision bigint not null,
    -- Reads as of an earlier revision are refused: what they need was pruned.
    oldest_revision bigint not null,
    updated_at bigint not null
);

-- The current blocks. The summary columns are for people and reports; payload holds the candles (src/block/codec.rs).
create table candle_block (
    series_id bigint not null references candle_series,
    timeframe text collate "C" not null,
    block_date bigint not null,
    revision bigint not null,
    candle_count bigint not null,
    first_open_time bigint not null,
    last_open_time bigint not null,
    open double precision not null,
    high double precision not null,
    low double precision not null,
    close double precision not null,
    volume double precision not null,
    open_interest double precision,
    -- CRC-32 (ISO-HDLC) of payload.
    checksum bigint not null,
    payload bytea not null,
    primary key (series_id, timeframe, block_date)
);

-- Compressed already.
alter table candle_block alter column payload set storage external;

-- Superseded blocks, until pruned. Without a payload the block is the first candle_count rows of the version that followed it.
create table candle_block_history (
    series_id bigint not null references candle_series,
    timeframe text collate "C" not null,
    block_date bigint not null,
    revision bigint not null,
    superseded_revision bigint not null,
    superseded_at bigint not null,
    candle_count bigint not null,
    first_open_time bigint not null,
    last_open_time bigint not null,
    checksum bigint not null,
    payload bytea,
    primary key (series_id, timeframe, block_date, revision)
);

alter table candle_block_history alter column payload set storage external;

create index candle_block_history_age on candle_block_history (superseded_at);

-- How far each source timeframe reaches, kept by the writer so that nobody has to count blocks.
create table candle_coverage (
    series_id bigint not null references candle_series,
    timeframe text collate "C" not null,
    first_open_time bigint not null,
    last_open_time bigint not null,
    candle_count bigint not null,
    block_count bigint not null,
    primary key (series_id, timeframe)
);

create table candle_change (
    sequence bigint primary key,
    series_id bigint not null references candle_series,
    timeframe text collate "C" not null,
    trading_date bigint not null,
    revision bigint not null,
    first_open_time bigint not null,
    last_open_time bigint not null,
    changed_at bigint not null
);

create index candle_change_series on candle_change (series_id, revision);
create index candle_change_age on candle_change (changed_at);

-- One row. A writer holds it from numbering its changes until its commit, so that sequences appear in their order.
create table candle_change_counter (
    counter_id bigint primary key check (counter_id = 1),
    last_sequence bigint not null,
    pruned_sequence bigint not null
);

-- Master data.

create table instrument (
    instrument_key text collate "C" not null primary key,
    segment text collate "C" not null,
    name text not null,
    exchange text not null,
    currency text not null,
    tick_size double precision not null,
    calendar text not null
);

create index instrument_segment on instrument (segment, instrument_key);

create table instrument_group (
    group_id text collate "C" not null primary key,
    name text not null,
    -- JSON array, in the order given.
    instrument_keys text not null
);

-- Flags.

create table flag (
    flag_key text collate "C" not null primary key,
    definition text not null,
    generation bigint not null,
    updated_at bigint not null,
    updated_by text not null
);

-- Studies.

create table study (
    study_id text collate "C" not null constraint study_id_taken primary key,
    name text not null,
    state text collate "C" not null,
    spec text not null,
    created_at bigint not null,
    updated_at bigint not null,
    progress_done bigint not null,
    progress_total bigint not null,
    error text
);

create index study_age on study (created_at, study_id);
create index study_state on study (state);

create table trial (
    study_id text collate "C" not null references study,
    number bigint not null,
    parameters text not null,
    content_hash text not null,
    objective double precision not null,
    result text not null,
    primary key (study_id, number)
);

create index trial_best on trial (study_id, objective desc, number);

-- Screens.

create table intent_batch (
    group_id text collate "C" not null,
    idempotency_key text collate "C" not null,
    -- JSON array of the ids of its intents, in order.
    intent_ids text not null,
    primary key (group_id, idempotency_key)
);

create table intent (
    intent_id text collate "C" not null constraint intent_id_taken primary key,
    group_id text collate "C" not null,
    instrument_key text collate "C" not null,
    side text not null,
    entry double precision not null,
    stop double precision not null,
    target double precision not null,
    quantity double precision not null,
    reason text not null,
    created_at bigint not null
);

create index intent_age on intent (created_at, intent_id);
create index intent_group_age on intent (group_id, created_at, intent_id);

create table analysis (
    instrument_key text collate "C" not null,
    timeframe text collate "C" not null,
    range_start bigint not null,
    range_end bigint not null,
    engine text collate "C" not null,
    revision bigint not null,
    metrics text not null,
    patterns text not null,
    created_at bigint not null,
    primary key (instrument_key, timeframe, range_start, range_end, engine)
);
