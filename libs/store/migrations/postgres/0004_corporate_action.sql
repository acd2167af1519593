-- Splits (kind 1: split_to shares for split_from) and dividends (kind 2: amount per share). Dates are the integer yyyymmdd.
create table corporate_action (
    instrument_key text collate "C" not null,
    ex_date bigint not null,
    kind bigint not null check (kind in (1, 2)),
    split_from double precision,
    split_to double precision,
    amount double precision,
    primary key (instrument_key, ex_date, kind)
);
