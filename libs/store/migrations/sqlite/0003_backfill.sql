-- Files loaded as persisted jobs.

create table backfill (
    backfill_id text not null primary key,
    -- The client's; null where it gave none.
    request_id text constraint backfill_request_taken unique,
    state text not null,
    -- What a running job was asked to become at its next chunk: 'pause' or 'cancel'.
    requested text,
    path text not null,
    format text not null,
    spec text not null,
    dry_run integer not null,
    files_total integer not null,
    -- Sums over the files, kept by whoever changes a file.
    files_done integer not null,
    files_failed integer not null,
    bytes_total integer not null,
    bytes_read integer not null,
    rows_read integer not null,
    stored integer not null,
    unchanged integer not null,
    rejected integer not null,
    created_at integer not null,
    updated_at integer not null,
    error text,
    -- The worker that runs it, for people; the fence is what shuts out a worker whose lease was taken over.
    lease_owner text,
    lease_expires_at integer not null,
    fence integer not null
);

create index backfill_age on backfill (created_at, backfill_id);
create index backfill_state on backfill (state, created_at, backfill_id);

create table backfill_file (
    backfill_id text not null references backfill,
    file_number integer not null,
    path text not null,
    state text not null,
    format text not null,
    size_bytes integer not null,
    modified_ns integer not null,
    bytes_read integer not null,
    rows_read integer not null,
    stored integer not null,
    unchanged integer not null,
    rejected integer not null,
    -- How far the file is acknowledged: candles handed over by its reader, and rows that it could not read.
    candles_taken integer not null,
    unreadable_taken integer not null,
    -- Revision of the instrument before the chunk under way; null when none is.
    pending_revision integer,
    -- JSON: first rejected rows, instruments.
    details text not null,
    error text,
    primary key (backfill_id, file_number)
);

create index backfill_file_state on backfill_file (backfill_id, state, file_number);
