"""Builds the data, runs the cases, stores and prints the result. Called by tests/bench/run."""

import argparse
import importlib.metadata
import os
import platform
import sys
import traceback
from datetime import datetime, timezone
from pathlib import Path

from harness import cases, data, indicator_cases, mesh_cases, report, service_cases, store_cases
from harness.measure import run_case
from harness.servers import Postgres
from harness.side import BENCH, ROOT, Programs

INSTRUMENTS, QUICK_INSTRUMENTS = 100, 20
SESSIONS = 250
PEERS = ["numpy", "pyarrow", "duckdb", "polars", "numba", "arcticdb", "psycopg", "raptorbt", "TA-Lib"]


def arguments():
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a fifth of the data")
    parser.add_argument("--only", default="", help=f"some of {','.join(cases.NAMES)}")
    parser.add_argument("--scale", default="", help="how many times the data, for the case scale: 1,4,16")
    parser.add_argument("--target", required=True, help="cargo's target folder")
    parser.add_argument("--work", default=str(ROOT / "target" / "bench-data"), help="data, databases and logs")
    options = parser.parse_args()
    options.only = [name for name in options.only.split(",") if name] or cases.NAMES
    unknown = set(options.only) - set(cases.NAMES)
    if unknown:
        parser.error(f"there is no case {', '.join(sorted(unknown))}; there are {', '.join(cases.NAMES)}")
    options.scales = [int(part) for part in (options.scale or ("1,4" if options.quick else "1,4,16")).split(",")]
    options.say = lambda line: print(line, file=sys.stderr, flush=True)
    return options


def machine():
    processor = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{processor} {os.cpu_count()}".lower()).strip("-")
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return {"name": name, "processor": processor, "cores": os.cpu_count(), "memory_gb": memory, "system": system}


def sessions(programs):
    """Real sessions by our calendar, so that flags mean something."""
    with programs.ours("sessions") as side:
        return side.ask("sessions", count=SESSIONS)["sessions"]


class Run:
    """What the cases share."""

    def __init__(self, options):
        self.options = options
        self.programs = Programs(options.target, sys.executable, options.work)
        shared = os.environ.get("CANDLEMESH_TEST_DATA", str(ROOT.parent / "shared" / "data"))
        instruments = QUICK_INSTRUMENTS if options.quick else INSTRUMENTS
        options.say("making the data")
        self.folder, self.meta = data.make(Path(options.work), instruments, sessions(self.programs), shared)
        self.postgres = None
        self.stored = None

    def needs_postgres(self):
        if not self.postgres:
            self.postgres = Postgres()
        return self.postgres

    def needs_stored(self):
        if not self.stored:
            self.stored = store_cases.Stored(self.programs, self.options, self.folder, self.needs_postgres())
        return self.stored

    def case(self, name):
        match name:
            case "resample":
                return run_case(cases.RESAMPLE, self.programs, self.options, lambda _: {"data": str(self.folder)})
            case "indicators":
                return indicator_cases.one(self.programs, self.options, self.folder)
            case "indicators-many":
                return indicator_cases.many(self.programs, self.options, self.folder)
            case "indicators-stream":
                return indicator_cases.stream(self.programs, self.options, self.folder)
            case "indicators-scale":
                return indicator_cases.scaled(self.programs, self.options, self.folder)
            case "cache":
                return service_cases.cache(self.programs, self.options)
            case "batch":
                return service_cases.batch(self.programs, self.options, self.needs_postgres())
            case "store":
                return self.needs_stored().store()
            case "read":
                return self.needs_stored().read(cases.READ)
            case "month":
                return self.needs_stored().read(cases.MONTH)
            case "bytes":
                return self.needs_stored().bytes()
            case "flight":
                return mesh_cases.flight(self.programs, self.options, self.folder)
            case "closes":
                return mesh_cases.closes(self.programs, self.options)
            case "memory":
                return mesh_cases.memory(self.programs, self.options, self.folder, self.needs_postgres())
            case "scale":
                return store_cases.scaled(self.programs, self.options, self.folder, self.options.scales)

    def close(self):
        if self.postgres:
            self.postgres.close()


def main():
    options = arguments()
    load_before = os.getloadavg()[0]
    run = Run(options)
    measured, failed = [], []
    try:
        for name in [name for name in cases.NAMES if name in options.only]:
            options.say(f"{name}:")
            try:
                measured.append(run.case(name))
            except Exception as error:
                # The other cases are still worth their time; the exit status tells.
                traceback.print_exc()
                failed.append(f"{name}: {error}")
    finally:
        run.close()
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {name: importlib.metadata.version(name) for name in PEERS},
        "quick": options.quick,
        "instruments": len(run.meta["instruments"]),
        "sessions": len(run.meta["sessions"]),
        "rows": run.meta["rows"],
        "origin": run.meta["origin"],
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "order": cases.NAMES,
        "cases": measured,
    }
    for case in measured:
        print("\n".join(report.case_lines(case)))
    if not options.quick:
        print(f"stored in {report.save(result, BENCH / 'results')}")
        (ROOT / "docs").mkdir(exist_ok=True)
        (ROOT / "docs" / "benchmarks.md").write_text(report.page(report.newest(BENCH / "results")))
    else:
        (Path(options.work) / "quick.md").write_text(report.page(result))
        print(f"a short run is not stored; see {options.work}/quick.md")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
