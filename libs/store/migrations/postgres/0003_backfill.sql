-- Files loaded as persisted jobs.

create table backfill (
    backfill_id text collate "C" not null primary key,
    -- The client's; null where it gave none.
    request_id text collate "C" constraint backfill_request_taken unique,
    state text collate "C" not null,
    -- What a running job was asked to become at its next chunk: 'pause' or 'cancel'.
    requested text,
    path text not null,
    format text not null,
    spec text not null,
    dry_run bigint not null,
    files_total bigint not null,
    -- Sums over the files, kept by whoever changes a file.
    files_done bigint not null,
    files_failed bigint not null,
    bytes_total bigint not null,
    bytes_read bigint not null,
    rows_read bigint not null,
    stored bigint not null,
    unchanged bigint not null,
    rejected bigint not null,
    created_at bigint not null,
    updated_at bigint not null,
    error text,
    -- The worker that runs it, for people; the fence is what shuts out a worker whose lease was taken over.
    lease_owner text,
    lease_expires_at bigint not null,
    fence bigint not null
);

create index backfill_age on backfill (created_at, backfill_id);
create index backfill_state on backfill (state, created_at, backfill_id);

create table backfill_file (
    backfill_id text collate "C" not null references backfill,
    file_number bigint not null,
    path text not null,
    state text collate "C" not null,
    format text not null,
    size_bytes bigint not null,
    modified_ns bigint not null,
    bytes_read bigint not null,
    rows_read bigint not null,
    stored bigint not null,
    unchanged bigint not null,
    rejected bigint not null,
    -- How far the file is acknowledged: candles handed over by its reader, and rows that it could not read.
    candles_taken bigint not null,
    unreadable_taken bigint not null,
    -- Revision of the instrument before the chunk under way; null when none is.
    pending_revision bigint,
    -- JSON: first rejected rows, instruments.
    details text not null,
    error text,
    primary key (backfill_id, file_number)
);

create index backfill_file_state on backfill_file (backfill_id, state, file_number);
