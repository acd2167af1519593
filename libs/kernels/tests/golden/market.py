"""A made-up market, and how golden files are written: what libs/kernels/tests/golden.rs reads.

A family's script computes columns by another library and calls `write`:

    python -m venv v && v/bin/pip install TA-Lib==0.8.2 numpy && v/bin/python averages.py
"""

import gzip
import math
from pathlib import Path

import numpy as np

ROWS = 320


def market():
    """Open, high, low, close, volume and day: moves on a tick of 0.05, flat minutes, minutes without volume, four days."""
    random = np.random.default_rng(20240229)
    close = 250.0
    rows = []
    for row in range(ROWS):
        opened = close
        is_quiet = random.random() < 0.25 or 150 <= row < 162
        close += 0.0 if is_quiet else round(random.normal(0, 12)) * 0.05
        reach = (0.0 if is_quiet else round(random.random() * 16) * 0.05 for _ in range(2))
        volume = 0.0 if random.random() < 0.1 else float(round(random.lognormal(8, 1)))
        rows.append((opened, max(opened, close) + next(reach), min(opened, close) - next(reach), close, volume))
    # Prices as decimal text has them.
    columns = [np.array([round(value, 2) for value in column]) for column in zip(*rows)]
    names = ("open", "high", "low", "close", "volume")
    return dict(zip(names, columns)) | {"day": np.arange(ROWS) // 80}


def text(value):
    return "" if math.isnan(value) else repr(float(value))


def write(script, columns):
    """Writes the market and the columns, named by our specs, beside the script."""
    table = {name: [text(value) for value in values] for name, values in (market() | columns).items()}
    lines = [";".join(table)] + [";".join(row) for row in zip(*table.values(), strict=True)]
    path = Path(script).with_suffix(".csv.gz")
    # Without a time of writing, so that the same values are the same file.
    with open(path, "wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
        packed.write("\n".join(lines).encode())
    print(f"{path.name}: {len(columns)} columns")
