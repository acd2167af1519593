"""An Arrow Flight client: puts tables of candles, lists flights page by page, and gets candles and indicators back as tables.

usage: flight.py HOST:PORT
"""

import decimal
import json
import sys

import pyarrow as pa
import pyarrow.flight as flight

INSTRUMENT = "NSE_EQ|ARROW"
# 2024-01-02 09:15 in Mumbai, the open of a session.
OPEN_MS = 1_704_167_100_000
MINUTES = 30
OPTIONS = flight.FlightCallOptions(timeout=60)
# Of the large frame: enough for several parts.
LARGE = "CRYPTO|ARROW"
LARGE_ROWS = 1_200_000


def check(claim, *what):
    if not claim:
        raise SystemExit(f"not as expected: {what}")


def descriptor(**ticket):
    return flight.FlightDescriptor.for_command(json.dumps(ticket))


def stored(instrument):
    return descriptor(stored_candles={"instrument_key": instrument, "timeframe": "1m"})


def minutes():
    """Closes rise by one a minute."""
    closes = [100.0 + index for index in range(MINUTES)]
    return pa.table(
        {
            "open_time": pa.array([OPEN_MS + 60_000 * i for i in range(MINUTES)], pa.timestamp("ms", tz="UTC")),
            "open": [close - 1.0 for close in closes],
            "high": [close + 0.5 for close in closes],
            "low": [close - 1.5 for close in closes],
            "close": closes,
            "volume": [10.0] * MINUTES,
        }
    )


def put(client, table, to=None, rows=10):
    """Puts a table; returns what the server acknowledged, batch by batch."""
    writer, reader = client.do_put(to or stored(INSTRUMENT), table.schema, OPTIONS)
    acknowledged = []
    for batch in table.to_batches(max_chunksize=rows):
        writer.write_batch(batch)
        answer = reader.read()
        if answer is None:
            # The server has ended the call; closing it tells why.
            break
        acknowledged.append(json.loads(answer.to_pybytes()))
    writer.close()
    return acknowledged


def get(client, asked):
    """Asks for a flight, and reads its parts in order."""
    info = client.get_flight_info(asked, OPTIONS)
    tables = [client.do_get(endpoint.ticket, OPTIONS).read_all() for endpoint in info.endpoints]
    check(all(table.schema.equals(info.schema) for table in tables), info.schema)
    table = pa.concat_tables(tables)
    check(info.total_records in (-1, table.num_rows), info.total_records, table.num_rows)
    return table


def refused(call, *texts):
    """The call is refused with a message that has all of these in it."""
    try:
        call()
    except (flight.FlightError, pa.ArrowException, KeyError) as error:
        check(all(text in str(error) for text in texts), error)
    else:
        raise SystemExit(f"not refused: {texts}")


def puts(client):
    for stored_rows, unchanged in [(10, 0), (0, 10)]:
        acknowledged = put(client, minutes())
        outcomes = [(a["stored"], a["unchanged"], a["rejected"]) for a in acknowledged]
        check(outcomes == [(stored_rows, unchanged, [])] * 3, acknowledged)
    bad = minutes().slice(0, 3).set_column(3, "low", pa.array([0.0, 1_000.0, 0.0]))
    (acknowledged,) = put(client, bad)
    (rejected,) = acknowledged["rejected"]
    check(acknowledged["stored"] == 2 and rejected["row"] == 1 and "low" in rejected["reason"], acknowledged)
    put(client, minutes())

    # The same candles in other types: nothing is new.
    times = minutes().column("open_time")
    cents = minutes().column("close").cast(pa.decimal128(12, 2))
    for position, name, column in [
        (0, "open_time", times.cast(pa.timestamp("ns", tz="Asia/Kolkata"))),
        (0, "open_time", times.cast(pa.timestamp("s", tz="UTC"))),
        (4, "close", cents),
        (5, "volume", pa.array([10] * MINUTES, pa.int32())),
    ]:
        table = minutes().set_column(position, name, column)
        check(all(a["unchanged"] == 10 for a in put(client, table)), column.type)

    # Other schemas: the message says which column, what was got, and what is expected.
    def changed(name, column):
        table = minutes()
        return table.set_column(table.column_names.index(name), name, column)

    seconds = pa.array([OPEN_MS // 1000 + 60 * i for i in range(MINUTES)], pa.int64())
    refused(lambda: put(client, changed("open_time", seconds)), "open_time", "Int64", "timestamp[ms, UTC]")
    refused(lambda: put(client, changed("close", pa.array(["1"] * MINUTES))), "close", "Utf8", "float64")
    refused(lambda: put(client, minutes().drop_columns(["low"])), "low", "missing", "close (Float64)")
    renamed = minutes().rename_columns(["Date", "Open", "High", "Low", "Close", "Volume"])
    refused(lambda: put(client, renamed), "open_time", "Date", "expected")
    fine = times.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    fine = pa.array([value.as_py() + 1 for value in fine], pa.timestamp("us"))
    refused(lambda: put(client, changed("open_time", fine)), "open_time", "row 0", "millisecond")
    huge = pa.array([decimal.Decimal("12345678901234567.89")] * MINUTES, pa.decimal128(20, 2))
    refused(lambda: put(client, changed("volume", huge)), "volume", "12345678901234567.89", "exact")


def reads(client):
    path = flight.FlightDescriptor.for_path
    by_json = get(client, descriptor(candles={"instrument_key": INSTRUMENT, "timeframe": "5m"}))
    candles = get(client, path("candles", INSTRUMENT, "5m"))
    check(candles.equals(by_json) and candles.num_rows == MINUTES // 5, candles)
    first = candles.slice(0, 1).to_pylist()[0]
    check([first[name] for name in ["open", "high", "low", "close", "volume"]] == [99.0, 104.5, 98.5, 104.0, 50.0], first)
    check((first["source_count"], first["complete"], first["open_interest"]) == (5, True, None), first)

    indicators = get(client, path("indicators", INSTRUMENT, "1m", "sma:9", "bbands:20,2"))
    check(indicators.num_rows == MINUTES, indicators)
    sma = indicators.column("sma:9").to_pylist()
    # The mean of nine values that rise by one is the middle one.
    check(sma[:8] == [None] * 8 and abs(sma[-1] - (100.0 + MINUTES - 1 - 4)) < 1e-9, sma)
    check("bbands:20,2.upper" in indicators.column_names, indicators.column_names)

    back = get(client, path("stored", INSTRUMENT))
    check(back.select(minutes().column_names).to_pydict() == minutes().to_pydict(), back)
    check(back.schema.metadata[b"instrument_key"] == INSTRUMENT.encode(), back.schema.metadata)

    refused(lambda: get(client, path("candles", "NSE_EQ|NOBODY", "5m")), "NSE_EQ|NOBODY")
    refused(lambda: get(client, path("candles", INSTRUMENT)), '["candles", KEY, TIMEFRAME')
    refused(lambda: get(client, path("candles", INSTRUMENT, "7m")), "7m")
    refused(lambda: client.do_exchange(path("stored", INSTRUMENT), OPTIONS)[1].read_chunk(), "DoGet", "DoPut")


def listing(client):
    """Every flight, following each page to the next."""
    for key in ["US|A", "US|B", "US|C"]:
        put(client, minutes().slice(0, 1), stored(key))
    seen, criteria, pages = [], b'{"limit": 2}', 0
    while criteria:
        infos = list(client.list_flights(criteria, OPTIONS))
        seen += [json_key(info) for info in infos]
        pages += 1
        criteria = infos[-1].app_metadata
    check(seen == sorted(seen) and {"US|A", "US|B", "US|C", INSTRUMENT} <= set(seen) and pages >= 2, seen, pages)
    us = [json_key(info) for info in client.list_flights(b'{"segment": "US"}', OPTIONS)]
    check(us == ["US|A", "US|B", "US|C"], us)
    refused(lambda: list(client.list_flights(b'{"limit": 0}', OPTIONS)), "criteria.limit")


def json_key(info):
    """Instrument of a listed flight, from its schema, so that nothing need be decoded."""
    return info.schema.metadata[b"instrument_key"].decode()


def parts(client):
    """A large frame comes in parts of one revision, whatever is written meanwhile."""
    times = pa.array([60_000 * minute for minute in range(LARGE_ROWS)], pa.timestamp("ms", tz="UTC"))
    ones = pa.array([1.5] * LARGE_ROWS)
    large = pa.table({"open_time": times, "open": ones, "high": ones, "low": ones, "close": ones, "volume": ones})
    put(client, large, stored(LARGE), rows=100_000)
    for kind in ["stored", "candles"]:
        info = client.get_flight_info(flight.FlightDescriptor.for_path(kind, LARGE, "1m"), OPTIONS)
        check(len(info.endpoints) == 2 and info.total_records == LARGE_ROWS, kind, len(info.endpoints), info.total_records)
        put(client, large.slice(0, 1).set_column(5, "volume", pa.array([9.0])), stored(LARGE))
        tables = [client.do_get(endpoint.ticket, OPTIONS).read_all() for endpoint in info.endpoints]
        put(client, large.slice(0, 1), stored(LARGE))
        table = pa.concat_tables(tables)
        check(all(table.column(name).equals(large.column(name)) for name in large.column_names), kind, table.num_rows)
        check(len({t.schema.metadata[b"revision"] for t in tables}) == 1, kind)


def main(address):
    client = flight.connect(f"grpc://{address}")
    puts(client)
    reads(client)
    listing(client)
    parts(client)


if __name__ == "__main__":
    main(sys.argv[1])
