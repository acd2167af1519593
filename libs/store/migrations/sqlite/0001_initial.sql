-- Candles. Times are milliseconds since the epoch in UTC, dates are the integer yyyymmdd.

-- One row per instrument with candles. Writers lock it; its calendar decided the dates of all its blocks.
create table candle_series (
    series_id integer primary key,
    instrument_key text not null constraint candle_series_key unique,
    calendar text not null,
    revision integer not null,
    -- Reads as of an earlier revision are refused: what they need was pruned.
    oldest_revision integer not null,
    updated_at integer not null
);

-- The current blocks. The summary columns are for people and reports; payload holds the candles (src/block/codec.rs).
create table candle_block (
    series_id integer not null references candle_series,
    timeframe text not null,
    block_date integer not null,
    revision integer not null,
    candle_count integer not null,
    first_open_time integer not null,
    last_open_time integer not null,
    open real not null,
    high real not null,
    low real not null,
    close real not null,
    volume real not null,
    open_interest real,
    -- CRC-32 (ISO-HDLC) of payload.
    checksum integer not null,
    payload blob not null,
    primary key (series_id, timeframe, block_date)
);

-- Superseded blocks, until pruned. Without a payload the block is the first candle_count rows of the version that followed it.
create table candle_block_history (
    series_id integer not null references candle_series,
    timeframe text not null,
    block_date integer not null,
    revision integer not null,
    superseded_revision integer not null,
    superseded_at integer not null,
    candle_count integer not null,
    first_open_time integer not null,
    last_open_time integer not null,
    checksum integer not null,
    payload blob,
    primary key (series_id, timeframe, block_date, revision)
);

create index candle_block_history_age on candle_block_history (superseded_at);

-- How far each source timeframe reaches, kept by the writer so that nobody has to count blocks.
create table candle_coverage (
    series_id integer not null references candle_series,
    timeframe text not null,
    first_open_time integer not null,
    last_open_time integer not null,
    candle_count integer not null,
    block_count integer not null,
    primary key (series_id, timeframe)
);

create table candle_change (
    sequence integer primary key,
    series_id integer not null references candle_series,
    timeframe text not null,
    trading_date integer not null,
    revision integer not null,
    first_open_time integer not null,
    last_open_time integer not null,
    changed_at integer not null
);

create index candle_change_series on candle_change (series_id, revision);
create index candle_change_age on candle_change (changed_at);

-- One row. A writer holds it from numbering its changes until its commit, so that sequences appear in their order.
create table candle_change_counter (
    counter_id integer primary key check (counter_id = 1),
    last_sequence integer not null,
    pruned_sequence integer not null
);

-- Master data.

create table instrument (
    instrument_key text not null primary key,
    segment text not null,
    name text not null,
    exchange text not null,
    currency text not null,
    tick_size real not null,
    calendar text not null
);

create index instrument_segment on instrument (segment, instrument_key);

create table instrument_group (
    group_id text not null primary key,
    name text not null,
    -- JSON array, in the order given.
    instrument_keys text not null
);

-- Flags.

create table flag (
    flag_key text not null primary key,
    definition text not null,
    generation integer not null,
    updated_at integer not null,
    updated_by text not null
);

-- Studies.

create table study (
    study_id text not null constraint study_id_taken primary key,
    name text not null,
    state text not null,
    spec text not null,
    created_at integer not null,
    updated_at integer not null,
    progress_done integer not null,
    progress_total integer not null,
    error text
);

create index study_age on study (created_at, study_id);
create index study_state on study (state);

create table trial (
    study_id text not null references study,
    number integer not null,
    parameters text not null,
    content_hash text not null,
    objective real not null,
    result text not null,
    primary key (study_id, number)
);

create index trial_best on trial (study_id, objective desc, number);

-- Screens.

create table intent_batch (
    group_id text not null,
    idempotency_key text not null,
    -- JSON array of the ids of its intents, in order.
    intent_ids text not null,
    primary key (group_id, idempotency_key)
);

create table intent (
    intent_id text not null constraint intent_id_taken primary key,
    group_id text not null,
    instrument_key text not null,
    side text not null,
    entry real not null,
    stop real not null,
    target real not null,
    quantity real not null,
    reason text not null,
    created_at integer not null
);

create index intent_age on intent (created_at, intent_id);
create index intent_group_age on intent (group_id, created_at, intent_id);

create table analysis (
    instrument_key text not null,
    timeframe text not null,
    range_start integer not null,
    range_end integer not null,
    engine text not null,
    revision integer not null,
    metrics text not null,
    patterns text not null,
    created_at integer not null,
    primary key (instrument_key, timeframe, range_start, range_end, engine)
);
