"""What is compared, and what the goals are."""

from dataclasses import dataclass, field

# Everything to do with a result's unit: from seconds of one run to the figure shown.
UNITS = {
    "ns per candle": lambda seconds, rows: seconds / rows * 1e9,
    "s": lambda seconds, rows: seconds,
    "ms": lambda seconds, rows: seconds * 1e3,
}


@dataclass(frozen=True)
class Goal:
    """`ours` may take `factor` times what `theirs` takes. A stretch goal is reported, and no failure when missed."""

    ours: str
    theirs: str
    factor: float
    is_stretch: bool = False


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    unit: str
    cores: int
    # Labels in the order of the table; a label that begins with "candlemesh" is ours.
    ours: dict
    peers: dict
    goals: list
    rounds: int = 7
    quick_rounds: int = 3
    # Whether sides write their columns, or say sums of them.
    equal: str = "sums"
    # Labels that answer less than the others, so are not compared: why.
    partial: dict = field(default_factory=dict)
    notes: tuple = ()


RESAMPLE = Case(
    name="resample",
    title="1m to 5m, session-anchored, with counts and flags; one core, output buffers reused",
    unit="ns per candle",
    cores=1,
    ours={"candlemesh V2": "v2", "candlemesh V1": "v1"},
    peers={
        "numba": "numba",
        "numba, registers": "numba-registers",
        "duckdb": "duckdb",
        "polars": "polars",
        "raptorbt": "raptorbt",
    },
    goals=[
        Goal("candlemesh V2", "numba", 1.0),
        Goal("candlemesh V2", "numba, registers", 1.0, is_stretch=True),
        Goal("candlemesh V2", "candlemesh V1", 1.0),
    ],
    equal="columns",
    partial={"raptorbt": "has neither counts nor flags"},
    notes=(
        "Time of the core (not of the clock), so that other work on the machine counts little.",
        "numba is the loop a careful user writes, one pass with the bucket in its output row; the other keeps the bucket in "
        "registers with its rows in an inner loop. Both fill counts and flags like ours, into buffers they reuse.",
        "duckdb and polars make a result of all instruments at once, as they have no other way; duckdb is given each row's "
        "session open as a column.",
    ),
)

STORE = Case(
    name="store",
    title="store all durably",
    unit="s",
    cores=2,
    ours={"candlemesh SQLite": "sqlite", "candlemesh PostgreSQL": "postgres"},
    peers={"duckdb": "duckdb", "arcticdb": "arcticdb", "parquet": "parquet", "postgres COPY": "postgres"},
    goals=[
        Goal("candlemesh SQLite", "duckdb", 1.5),
        Goal("candlemesh PostgreSQL", "duckdb", 1.5),
        Goal("candlemesh SQLite", "duckdb", 1.0, is_stretch=True),
    ],
    rounds=5,
    quick_rounds=2,
    equal="rows",
    notes=(
        "Through store::Stores::put_all in calls of up to a million rows, from frames in memory, into an empty database, to the last "
        "acknowledgement. Indexes, revisions and the change log are ours only.",
        "Peers end with a checkpoint, or fsync of files and folders.",
    ),
)

READ = Case(
    name="read",
    title="read all back, streamed and summed; two cores",
    unit="s",
    cores=2,
    ours={"candlemesh SQLite": "sqlite", "candlemesh PostgreSQL": "postgres"},
    peers={"duckdb": "duckdb", "arcticdb": "arcticdb", "parquet": "parquet", "postgres rows": "postgres"},
    goals=[
        Goal("candlemesh SQLite", "parquet", 1.0),
        Goal("candlemesh PostgreSQL", "parquet", 1.0),
        Goal("candlemesh SQLite", "duckdb", 1.0, is_stretch=True),
        Goal("candlemesh PostgreSQL", "duckdb", 1.0, is_stretch=True),
    ],
    notes=(
        "Files are in the page cache on all sides. duckdb sums inside the database, so its rows never leave it; all others hand the "
        "columns to the program. Ours verifies a checksum per block besides.",
    ),
)

MONTH = Case(
    name="month",
    title="read one instrument-month (8177 rows)",
    unit="ms",
    cores=2,
    ours={"candlemesh SQLite": "sqlite", "candlemesh PostgreSQL": "postgres"},
    peers={"duckdb": "duckdb", "arcticdb": "arcticdb", "parquet": "parquet", "postgres rows": "postgres"},
    goals=[Goal("candlemesh SQLite", "parquet", 1.0), Goal("candlemesh PostgreSQL", "parquet", 1.0)],
    rounds=9,
    notes=("One caller, one month after the other: other instruments and months at every turn. Mean of a round's months.",),
)

MEASURED = [RESAMPLE, STORE, READ, MONTH]
# Cases with a flow of their own, in harness/mesh_cases.py.
NAMES = ["resample", "store", "read", "month", "bytes", "closes", "flight", "scale", "memory"]
BYTES_GOAL, BYTES_STRETCH = 8.0, 6.3
MEMORY_GOAL_BYTES = 300_000_000
CLOSES_GOAL_SECONDS = 0.250
