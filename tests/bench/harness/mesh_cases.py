"""Cases over running processes of ours: Flight, peak memory of an export, and all instruments closing a minute at once."""

import json
import statistics
from contextlib import ExitStack, closing

from harness import cases
from harness.measure import alternate, figures, judged
from harness.servers import Mesh
from harness.side import SideFailed
from harness.store_cases import limited

STORED = {"stored_candles": {"instrument_key": "CRYPTO|BENCH", "timeframe": "1m"}}
SUBSCRIBERS = [1, 10, 50]
INSTRUMENTS = 5000


def flight(programs, options, data_folder):
    """The same client process reads the same candles from every server, in turns."""
    servers, sides = {}, {}
    with ExitStack() as stack:
        mesh = stack.enter_context(closing(Mesh(programs.candlemesh, programs.work / "flight-up").up()))
        with programs.peer("flight load") as loader:
            loader.ask("prepare", case="flight", variant="load", data=str(data_folder), instruments=1, address=mesh.addresses["gateway"])
            loaded = loader.ask("run")
        options.say(f"  DoPut of {loaded['rows']} rows: {loaded['seconds']:.1f} s")
        servers["candlemesh stored"] = mesh.addresses["ingestion"]
        servers["candlemesh stored, by the gateway"] = mesh.addresses["gateway"]
        ours = stack.enter_context(programs.ours("flight memory"))
        servers["candlemesh in memory"] = ours.ask("prepare", case="flight", data=str(data_folder))["address"]
        peer = stack.enter_context(programs.peer("flight pyarrow"))
        servers["pyarrow"] = peer.ask("prepare", case="flight", variant="pyarrow", data=str(data_folder))["address"]
        for server, address in servers.items():
            for variant, name in (("client", "default"), ("tuned", "tuned")):
                label = f"{server}, {name} client"
                side = stack.enter_context(programs.peer(label))
                side.ask("prepare", case="flight", variant=variant, address=address, ticket=json.dumps(STORED))
                sides[label] = side
        answers = alternate(sides, 3 if options.quick else 7, options.say)
    found = {label: figures("s", [run["seconds"] for run in runs], 0) for label, runs in answers.items()}
    rows = {runs[-1]["rows"] for runs in answers.values()}
    if len(rows) != 1:
        raise RuntimeError(f"flight: the servers answered different numbers of rows: {rows}")
    size = max(runs[-1]["payload_bytes"] for runs in answers.values())
    for label, side in found.items():
        side["gb_per_s"] = size / side["min"] / 1e9
    goals = []
    for name in ("default client", "tuned client"):
        for server in ("candlemesh stored", "candlemesh in memory"):
            goals.append(cases.Goal(f"{server}, {name}", f"pyarrow, {name}", 1.0, server != "candlemesh stored"))
    speeds = "; ".join(f"{label} {side['gb_per_s']:.2f}" for label, side in found.items())
    return {
        "name": "flight",
        "title": "Flight DoGet to a pyarrow client",
        "unit": "s",
        "rows": rows.pop(),
        "sides": found,
        "goals": [judged(goal, found) for goal in goals],
        "missing": {},
        "equal": "rows",
        "notes": [
            f"GB/s of Arrow buffers by the fastest run: {speeds}.",
            f"One instrument of {loaded['rows']} minutes under `candlemesh up` on SQLite; ours in memory serves the same batches without "
            "a store; pyarrow's server is its C++ one over a table in memory. Server and client share the cores.",
            f"Before it, DoPut by the gateway: {loaded['rows'] / loaded['seconds'] / 1e6:.2f} million rows a second.",
        ],
    }


def memory(programs, options, data_folder, postgres):
    """Six roles on PostgreSQL; every instrument is loaded and exported by the gateway."""
    postgres.create("memory")
    keys = json.loads((data_folder / "meta.json").read_text())["instruments"]
    with closing(Mesh(programs.candlemesh, programs.work / "memory").serve(postgres.url("memory"))) as mesh:
        address = mesh.addresses["gateway"]
        with programs.peer("memory load") as loader:
            loader.ask("prepare", case="flight", variant="load", data=str(data_folder), instruments=len(keys), address=address)
            loaded = loader.ask("run")
        loading = mesh.peaks()
        seconds = {}
        for timeframe in ("1m", "5m", "1d"):
            with programs.peer("memory export") as client:
                client.ask("prepare", case="flight", variant="export", address=address, keys=keys, timeframe=timeframe)
                seconds[timeframe] = client.ask("run")
        peaks = mesh.peaks()
    sides = {}
    for role, peak in peaks.items():
        value = peak / 1e6
        sides[f"candlemesh {role}"] = {"min": value, "median": value, "runs": [loading[role] / 1e6, value]}
    exported = ", ".join(f"{run['rows']} candles of {name} in {run['seconds']:.1f} s" for name, run in seconds.items())
    return {
        "name": "memory",
        "title": "peak resident memory of each service, full load and export by the gateway",
        "unit": "MB",
        "rows": loaded["rows"],
        "sides": sides,
        "goals": [limited(label, side["min"] * 1e6, cases.MEMORY_GOAL_BYTES) for label, side in sides.items()],
        "missing": {},
        "notes": [f"VmHWM from the start of the process; loaded in {loaded['seconds']:.1f} s, then exported: {exported}."],
    }


def closes(programs, options):
    """The time from the acknowledgement of a minute until the last subscriber has all closes of it."""
    sides, goals, missing, notes = {}, [], {}, []
    rounds = 5 if options.quick else 15
    for subscribers in SUBSCRIBERS:
        label = f"candlemesh, {subscribers} subscribers"
        try:
            with closing(Mesh(programs.candlemesh, programs.work / "closes").up()) as mesh, programs.ours(label) as side:
                addresses = {name: f"http://{mesh.addresses[name]}" for name in ("ingestion", "aggregation")}
                side.ask("prepare", case="closes", instruments=INSTRUMENTS, subscribers=subscribers, **addresses)
                runs = [side.ask("run") for _ in range(rounds)]
        except SideFailed as error:
            options.say(f"  {error}")
            missing[label] = str(error)
            continue
        values = [run["seconds"] * 1e3 for run in runs]
        sides[label] = {"min": min(values), "median": statistics.median(values), "max": max(values), "runs": values}
        wrong = [run for run in runs if run["updates"] != run["expected"]]
        stored = statistics.median(run["store_seconds"] for run in runs) * 1e3
        received = f"{len(wrong)} rounds with updates missing or doubled" if wrong else f"{runs[-1]['updates']} updates each round, none doubled"
        notes.append(f"{label}: slowest round {max(values):.0f} ms; storing the minute took {stored:.0f} ms; {received}.")
        goals.append(limited(label, max(values) / 1e3, cases.CLOSES_GOAL_SECONDS))
        if wrong:
            goals[-1]["verdict"] = "missed"
    return {
        "name": "closes",
        "title": f"{INSTRUMENTS} instruments close a minute at once: last acknowledgement to last subscriber",
        "unit": "ms",
        "rows": INSTRUMENTS,
        "sides": sides,
        "goals": goals,
        "missing": missing,
        "notes": [*notes, "The goal is judged by the slowest round. Client and server share the cores."],
    }
