-- Splits (kind 1: split_to shares for split_from) and dividends (kind 2: amount per share). Dates are the integer yyyymmdd.
create table corporate_action (
    instrument_key text not null,
    ex_date integer not null,
    kind integer not null check (kind in (1, 2)),
    split_from real,
    split_to real,
    amount real,
    primary key (instrument_key, ex_date, kind)
) without rowid;
