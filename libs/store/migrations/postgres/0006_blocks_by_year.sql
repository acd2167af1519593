-- Current blocks by the year of their date, so that a table and its index stay of a size that can be cached, vacuumed and moved.
--
-- There is no default partition: attaching a year would have to look through it under a lock that stops every reader, and rows in it would
-- go unnoticed. A writer adds the years it needs before its transaction; without one an insert is refused, which is loud.
-- Superseded blocks stay in one table: their number is bounded by the retention, and they are pruned by age, not by date.
--
-- Tables and rows in one file, against the rule: between two files replicas of the version before would find no candles. Readers and writers wait until
-- the end, and the blocks need their space twice meanwhile.

-- In the order of every statement that takes both: the other way round, one under way and this would wait for each other.
lock table candle_series, candle_block in access exclusive mode;

alter table candle_block rename to candle_block_undivided;
alter index candle_block_pkey rename to candle_block_undivided_pkey;

create table candle_block (
    series_id bigint not null references candle_series,
    timeframe text collate "C" not null,
    -- Of 1d, 1w and 1mo 1 January of the year the block holds, as every other block's its trading date.
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
) partition by range (block_date);

alter table candle_block alter column payload set storage external;

-- Adds the partition of a year unless it is there, for any number of callers at once.
--
-- A table attached, not created in place: readers of candle_block go on. The foreign key comes with attaching, and for it the writers of
-- candle_series must have committed, so that the caller must hold nothing they wait for. What a partition does not inherit is named here.
create function candle_block_add_year(year bigint) returns void language plpgsql as $$
declare
    partition text := format('candle_block_%s', year);
begin
    -- Whoever held the lock may have added it. Asked by a query: name look-ups answer from a cache that waiting for the lock does not renew.
    perform pg_advisory_xact_lock(hashtext('candle_block_add_year'), 0);
    perform from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'candle_block'::regclass and c.relname = partition;
    if found then
        return;
    end if;
    execute format('create table %I (like candle_block including all) with (toast_tuple_target = 8160)', partition);
    execute format(
        'alter table candle_block attach partition %I for values from (%s) to (%s)',
        partition, year * 10000, (year + 1) * 10000
    );
end
$$;

select candle_block_add_year(years.year)
from (select distinct block_date / 10000 as year from candle_block_undivided order by 1) years;

insert into candle_block (series_id, timeframe, block_date, revision, candle_count, first_open_time, last_open_time, open, high,
    low, close, volume, open_interest, checksum, payload)
select series_id, timeframe, block_date, revision, candle_count, first_open_time, last_open_time, open, high,
    low, close, volume, open_interest, checksum, payload
from candle_block_undivided order by series_id, timeframe, block_date;

drop table candle_block_undivided;
