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
    # Peers that are Rust crates, run by our program: they have no other home.
    hosted: dict = field(default_factory=dict)
    # Columns may also differ by this much; with it, undefined values must be so on all sides.
    floor: float = 0.0
    # Columns of a label that may differ by more, since its formula loses digits: {label: {column: how much}}.
    coarse: dict = field(default_factory=dict)
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

SET = "SMA 9, EMA 5, 9 and 50, RSI 14, ATR 14, Bollinger bands (20, 2) with their width, session VWAP: 11 columns"
CORE_TIME = "Time of the core (not of the clock), so that other work on the machine counts little."

# Sums that move with the window keep what rounding left in them, and a difference of squares has few digits where prices hardly move.
MOVING_SUMS = {"upper": 1e-6, "lower": 1e-6, "width": 1e-6}
SQUARES = {"upper": 1e-4, "lower": 1e-4, "width": 2e-4}
COARSE = {"kand": SQUARES, **dict.fromkeys(["TA-Lib C", "TA-Lib from Python", "numba", "numba, lean", "polars"], MOVING_SUMS)}
COARSE_NOTE = (
    "Compared to 1e-9, but for the peers' bands, whose moving sums keep rounding errors: to 1e-6 in the price's unit, kand's to 1e-4, since it "
    "takes the variance as a difference of squares. Ours has no such drift: V1 and V2 agree to the bit."
)

INDICATORS = Case(
    name="indicators",
    title=f"{SET}; one instrument of 93 750 minutes, one core",
    unit="ns per candle",
    cores=1,
    ours={"candlemesh V2": "v2", "candlemesh V2, in pieces": "v2-pieces", "candlemesh V1": "v1"},
    hosted={"kand": "kand"},
    peers={
        "TA-Lib C": "talib-c",
        "TA-Lib from Python": "talib-python",
        "numba": "numba",
        "numba, lean": "numba-lean",
        "polars": "polars",
    },
    goals=[
        Goal("candlemesh V2", "TA-Lib C", 1 / 3),
        Goal("candlemesh V2", "numba", 1 / 2),
        Goal("candlemesh V2", "numba, lean", 1 / 2, is_stretch=True),
        Goal("candlemesh V2", "candlemesh V1", 1 / 3),
    ],
    equal="columns",
    floor=1e-9,
    coarse=COARSE,
    notes=(
        CORE_TIME,
        COARSE_NOTE,
        "Into output buffers that are reused: V2, TA-Lib C, numba and kand. In pieces: V2 hands the columns out 4096 rows at a time. V1, "
        "TA-Lib from Python and polars make new columns each time, as they have no other way.",
        "Ours computes the normalised width besides, a twelfth column, since its bands always have it.",
        "TA-Lib C is the library in TA-Lib's wheel, called with pointers made beforehand; it has neither the width nor VWAP, which numpy and "
        "a numba loop add into buffers. kand's VWAP has no session: each day is a call.",
        "numba is one loop over the candles with moving sums; the lean one has the warm-up in a loop of its own, so no branch but the day's, "
        "and multiplies by reciprocals. Ours and kand are portable builds; numba compiles for the machine at hand.",
    ),
)

INDICATORS_MANY = Case(
    name="indicators-many",
    title="the same set; 100 instruments, one core",
    unit="ns per candle",
    cores=1,
    ours={"candlemesh V2": "v2", "candlemesh V1": "v1"},
    hosted={"kand": "kand"},
    peers=INDICATORS.peers,
    goals=[
        Goal("candlemesh V2", "numba", 1 / 3),
        Goal("candlemesh V2", "numba, lean", 1 / 3, is_stretch=True),
        Goal("candlemesh V2", "TA-Lib from Python", 1 / 3),
    ],
    rounds=5,
    equal="columns",
    floor=1e-9,
    coarse=COARSE,
    notes=(
        CORE_TIME,
        COARSE_NOTE,
        "Into buffers of one instrument that are reused for the next, where a side has such. Columns of the first five are compared.",
    ),
)

INDICATORS_STREAM = Case(
    name="indicators-stream",
    title="the same set; one new candle at a time, its values before the next candle is taken",
    unit="ns per candle",
    cores=1,
    ours={"candlemesh": "machines"},
    hosted={"kand": "kand"},
    peers={},
    goals=[Goal("candlemesh", "kand", 1.0)],
    equal="columns",
    floor=1e-9,
    coarse=COARSE,
    notes=(
        CORE_TIME,
        COARSE_NOTE,
        "After 64 candles of warm-up. kand is given the close that leaves each window; ours remembers it, and can be saved and restored at "
        "every candle to go on to the bit.",
    ),
)

SCALE_ROWS = [1_000, 10_000, 100_000, 1_000_000, 10_000_000]

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

MEASURED = [RESAMPLE, INDICATORS, INDICATORS_MANY, INDICATORS_STREAM, STORE, READ, MONTH]
# In the order of the page; some have a flow of their own, in harness/*_cases.py.
NAMES = [
    "resample",
    "indicators",
    "indicators-many",
    "indicators-stream",
    "indicators-scale",
    "cache",
    "batch",
    "store",
    "read",
    "month",
    "bytes",
    "closes",
    "flight",
    "scale",
    "memory",
]
BYTES_GOAL, BYTES_STRETCH = 8.0, 6.3
MEMORY_GOAL_BYTES = 300_000_000
CLOSES_GOAL_SECONDS = 0.250
