"""Writes the Parquet files of this folder: the same three candles by pyarrow 26.0.1, DuckDB 2.0.0 and polars 2.1.0."""

import datetime
import pathlib

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq

folder = pathlib.Path(__file__).parent
start = datetime.datetime(2020, 1, 2, 14, 30, tzinfo=datetime.timezone.utc)
stamps = [start + datetime.timedelta(minutes=minute) for minute in range(3)]
table = pa.table(
    {
        "key": ["US|SPY"] * 3,
        "timestamp": pa.array(stamps, pa.timestamp("ms", tz="UTC")),
        "open": [1.0, 1.5, 1.25],
        "high": [2.0, 2.5, 2.25],
        "low": [0.5, 1.0, 1.0],
        "close": [1.5, 2.0, 1.125],
        "volume": [10.0, 20.0, 0.0],
        "open_interest": pa.array([None, 5.0, 6.0], pa.float64()),
    }
)
pq.write_table(table, folder / "pyarrow_v1.parquet", compression="snappy", version="1.0")
pq.write_table(
    table,
    folder / "pyarrow_v2.parquet",
    compression="zstd",
    data_page_version="2.0",
    write_page_index=True,
    row_group_size=2,
    sorting_columns=[pq.SortingColumn(1)],
    use_dictionary=["key"],
    column_encoding={"open": "BYTE_STREAM_SPLIT"},
)
connection = duckdb.connect()
connection.execute("set timezone='UTC'")
connection.register("candles", table)
connection.execute(f"copy (from candles) to '{folder}/duckdb.parquet' (format parquet, compression zstd)")
polars.from_arrow(table).write_parquet(folder / "polars.parquet", statistics="full")
