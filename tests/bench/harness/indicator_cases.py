"""Indicators: one instrument, many, one candle at a time, and as the history grows."""

from harness import cases
from harness.measure import figures, judged, run_case
from harness.side import SideFailed

# So that a run takes long enough to be measured.
PASSES = 20
COMPARED = 5
FLAT = 1.25


def one(programs, options, folder):
    told = {"data": str(folder), "instruments": 1, "scale": PASSES, "compared": 1}
    return run_case(cases.INDICATORS, programs, options, lambda _: told)


def many(programs, options, folder):
    return run_case(cases.INDICATORS_MANY, programs, options, lambda _: {"data": str(folder), "compared": COMPARED})


def stream(programs, options, folder):
    return run_case(cases.INDICATORS_STREAM, programs, options, lambda _: {"data": str(folder), "compared": 1})


def scaled(programs, options, folder):
    """Cost per candle of V2 in pieces as the history grows: as many candles in all, in histories of other lengths."""
    sides, goals = {}, []
    total = max(cases.SCALE_ROWS) // (10 if options.quick else 1)
    first = None
    for rows in [rows for rows in cases.SCALE_ROWS if rows <= total]:
        label = f"candlemesh V2, {rows} candles"
        try:
            with programs.ours(label, cores=1) as side:
                told = {"data": str(folder), "rows": rows, "scale": total // rows}
                side.ask("prepare", case="indicators-scale", variant="v2-pieces", **told)
                runs = [side.ask("run") for _ in range(6)][1:]
        except SideFailed as error:
            options.say(f"  {label}: {error}")
            continue
        sides[label] = figures("ns per candle", [run["seconds"] for run in runs], runs[-1]["rows"])
        sides[label]["peak_bytes"] = runs[-1]["peak_bytes"]
        options.say(f"  {label}: {sides[label]['min']:.1f} ns per candle")
        first = first or label
        if label != first:
            goals.append(judged(cases.Goal(label, first, FLAT), sides))
    return {
        "name": "indicators-scale",
        "title": "the same set, cost per candle as the history grows, one core, blocks reused",
        "unit": "ns per candle",
        "rows": total,
        "sides": sides,
        "goals": goals,
        "missing": {},
        "notes": [
            cases.CORE_TIME,
            f"Each side takes {total} candles in all: histories of its length one after the other, each from its first candle, "
            "handed out in pieces whose buffers are reused. Flat means at most 1.25 times as much.",
        ],
    }
