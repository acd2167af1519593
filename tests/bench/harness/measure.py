"""Runs sides in turns, and compares what they answer."""

import os
import statistics
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from harness.cases import UNITS
from harness.side import SideFailed

SUM_TOLERANCE = 1e-9
EXACT = {"open_time.i64", "open.f64", "high.f64", "low.f64", "close.f64"}


class Unequal(Exception):
    """Two sides answered differently: a ratio of their times would mean nothing."""


def alternate(sides, rounds, say):
    """One warm run of each, then all of them in turns, each round beginning with another. Returns each label's answers."""
    answers = {label: [] for label in sides}
    for side in sides.values():
        side.ask("run")
    labels = list(sides)
    for turn in range(rounds):
        order = labels[turn % len(labels) :] + labels[: turn % len(labels)]
        for label in order:
            answers[label].append(sides[label].ask("run"))
        say(f"  round {turn + 1} of {rounds}, load {os.getloadavg()[0]:.1f}")
    return answers


def run_case(case, programs, options, prepared):
    """Measures a case. `prepared(label)` gives what a side is told besides the case's name and variant."""
    result = {"name": case.name, "title": case.title, "unit": case.unit, "notes": list(case.notes), "sides": {}, "missing": {}}
    with ExitStack() as stack:
        sides = {}
        for label, variant in {**case.ours, **case.hosted, **case.peers}.items():
            make = programs.ours if label in {**case.ours, **case.hosted} else programs.peer
            side = stack.enter_context(make(label, case.cores))
            try:
                side.ask("prepare", case=case.name, variant=variant, **prepared(label))
                sides[label] = side
            except (SideFailed, OSError) as error:
                options.say(f"  {label} is left out: {error}")
                result["missing"][label] = str(error)
        rounds = case.quick_rounds if options.quick else case.rounds
        answers = alternate(sides, rounds, options.say)
        result["equal"] = compare(case, sides, answers, programs.work / "columns" / case.name)
    rows = max(answer[-1]["rows"] for answer in answers.values())
    result["rows"] = rows
    for label, runs in answers.items():
        result["sides"][label] = figures(case.unit, [run["seconds"] for run in runs], rows)
        result["sides"][label]["peak_bytes"] = runs[-1]["peak_bytes"]
        for name in ("bytes", "database_url"):
            if runs[-1].get(name):
                result["sides"][label][name] = runs[-1][name]
    result["goals"] = [judged(goal, result["sides"]) for goal in case.goals if {goal.ours, goal.theirs} <= set(sides)]
    return result


def figures(unit, seconds, rows):
    values = [UNITS[unit](value, rows) for value in seconds]
    return {"min": min(values), "median": statistics.median(values), "runs": values}


def judged(goal, sides):
    ours, theirs = sides[goal.ours], sides[goal.theirs]
    by_min, by_median = ours["min"] / theirs["min"], ours["median"] / theirs["median"]
    met = (by_min <= goal.factor) + (by_median <= goal.factor)
    return {
        "ours": goal.ours,
        "theirs": goal.theirs,
        "factor": goal.factor,
        "is_stretch": goal.is_stretch,
        "ratio_of_mins": by_min,
        "ratio_of_medians": by_median,
        "verdict": ["missed", "met by one of the two", "met"][met],
    }


def compare(case, sides, answers, folder):
    """Raises unless every side's result is the same; says what was compared."""
    whole = {label: runs[-1] for label, runs in answers.items() if label not in case.partial}
    first, *others = whole
    if case.equal in ("rows", "sums"):
        names = ["rows"] if case.equal == "rows" else ["rows", "open_time", "open", "high", "low", "close", "volume"]
        for label in others:
            for name in names:
                ours, theirs = whole[first][name], whole[label][name]
                same = ours == theirs if name == "rows" else close(name, ours, theirs)
                if not same:
                    raise Unequal(f"{case.name}: {name} is {ours} from {first}, {theirs} from {label}")
        return f"{', '.join(names)} of {len(whole)} sides"
    for label in whole:
        sides[label].ask("write", folder=str(folder / label))
    expected = columns_in(folder / first)
    for label in others:
        found = columns_in(folder / label)
        for name, column in expected.items():
            other = found[name]
            if len(column) != len(other):
                raise Unequal(f"{case.name}: {len(column)} rows from {first}, {len(other)} from {label}")
            is_exact = name in EXACT or not name.endswith("f64")
            floor = case.coarse.get(label, {}).get(name.split(".")[0], case.floor)
            same = np.array_equal(column, other) if is_exact else near(column, other, floor)
            if not same:
                row = int(np.argmax(np.abs(np.nan_to_num(column) - np.nan_to_num(other))))
                raise Unequal(f"{case.name}: {name} row {row} is {column[row]} from {first}, {other[row]} from {label}")
    names = ", ".join(name.split(".")[0] for name in expected)
    return f"{len(next(iter(expected.values())))} rows of {len(whole)} sides: {names}"


def near(column, other, floor):
    return np.allclose(column, other, rtol=SUM_TOLERANCE, atol=floor, equal_nan=floor > 0)


def close(name, ours, theirs):
    if name == "open_time":
        # Sums of stamps pass 64 bits; all sides agree on what is left.
        return (int(ours) - int(theirs)) % 2**64 == 0
    return abs(ours - theirs) <= SUM_TOLERANCE * max(abs(ours), abs(theirs))


def columns_in(folder):
    types = {"i64": np.int64, "f64": np.float64, "u32": np.uint32, "u8": np.uint8}
    return {path.name: np.fromfile(path, types[path.suffix[1:]]) for path in sorted(Path(folder).iterdir())}
