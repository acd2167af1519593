"""Cases over the indicator service: its cache, and batches of many instruments by both engines."""

from contextlib import ExitStack, closing

from harness.measure import figures
from harness.servers import Mesh, free_port, peak_bytes
from harness.store_cases import limited

LOCAL_GOAL_US, SHARED_GOAL_US, LARGE_GOAL = 100.0, 1000.0, 1.5
SMALL_BYTES = 64 << 10
HIT_RATE_GOAL = 0.85
BATCH_INSTRUMENTS = 1000
BATCH_MEMORY_GOAL_BYTES = 512_000_000
LEAVE_GOAL_SECONDS = 0.1
SIZES = {1 << 20: "MiB", 1 << 10: "KiB"}


def size_text(size):
    unit = max(unit for unit in SIZES if size >= unit)
    return f"{size // unit} {SIZES[unit]}"


def cache(programs, options):
    """Look-ups in both levels beside a plain GET of the same Redis."""
    scale = 1 if options.quick else 3

    def measured(variant):
        with programs.ours(f"cache {variant}") as side:
            side.ask("prepare", case="cache", variant=variant, scale=scale)
            return side.ask("run")

    sides, goals = {}, []
    look_ups = measured("look_ups")
    sizes = sorted(int(name) for name in look_ups if name.isdigit())
    for size in sizes:
        found = look_ups[str(size)]
        for level, name in (("local", "in process"), ("shared", "in Redis"), ("plain_get", "plain GET")):
            side = found[level]
            sides[f"{size_text(size)}, {name}"] = {"min": side["p50_us"], "median": side["p99_us"], "runs": side["count"]}
        local, shared, plain = (found[level]["p99_us"] for level in ("local", "shared", "plain_get"))
        goals.append(limited(f"{size_text(size)}, in process", local, LOCAL_GOAL_US))
        if size <= SMALL_BYTES:
            goals.append(limited(f"{size_text(size)}, in Redis", shared, SHARED_GOAL_US))
        else:
            by_p50 = found["shared"]["p50_us"] / found["plain_get"]["p50_us"]
            is_met = shared <= LARGE_GOAL * plain
            goals.append(
                {
                    "ours": f"{size_text(size)}, in Redis",
                    "theirs": f"{size_text(size)}, plain GET",
                    "factor": LARGE_GOAL,
                    "is_stretch": False,
                    "ratio_of_mins": by_p50,
                    "ratio_of_medians": shared / plain,
                    "verdict": "met" if is_met else "missed",
                }
            )
    hits, suffix = measured("hits"), measured("suffix")
    rate = hits["hit_rate"]
    goals.append(limited("misses of a repeated workload", 1 - rate, 1 - HIT_RATE_GOAL))
    kept = "; ".join(
        f"{name.replace('_', ' ')}: {suffix[name]['kept']['p50_us'] / 1e3:.1f} ms, by the reference {suffix[name]['v1']['p50_us'] / 1e3:.1f} ms"
        for name in ("last_session", "year")
    )
    return {
        "name": "cache",
        "title": "the indicator service's cache, of the columns of the D3 set; the columns are the 50th and the 99th percentile",
        "unit": "us",
        "figures": "min is the 50th percentile, median the 99th",
        "rows": 0,
        "sides": sides,
        "goals": goals,
        "missing": {},
        "notes": [
            "In process and in Redis: a look-up inside the service, decoded and checked, from another replica's entry in the case of Redis. "
            "Goals are judged by the 99th percentile; the ratio of mins is of the 50th.",
            f"A workload that repeats itself (Zipf over 80 queries, one instrument in ten changed between rounds of 300): hit rate {rate:.1%}, "
            f"{hits['misses']} misses of which {hits['suffix_computations']} began at a kept state.",
            f"One minute of a year of 1m changes and its indicators are asked, half of the time: {kept}.",
        ],
    }


def batch(programs, options, postgres):
    """A year of 5m of many instruments, the D3 set of each, by each engine in a mesh of its own; V2 keeps no answers."""
    instruments = 50 if options.quick else BATCH_INSTRUMENTS
    postgres.create("batch")
    sides, memory, goals, first, left = {}, {}, [], {}, []
    for engine, rounds in (("v2", 3), ("v1", 1)):
        port = free_port()
        with ExitStack() as stack:
            mesh = Mesh(programs.candlemesh, programs.work / f"batch-{engine}")
            mesh.environment = {"CANDLEMESH_INDICATOR__CACHING": "false"}
            mesh.arguments = {"indicator": ["--metrics-listen", f"127.0.0.1:{port}"]}
            stack.enter_context(closing(mesh.serve(postgres.url("batch"))))
            addresses = {name: f"http://{mesh.addresses[name]}" for name in ("ingestion", "indicator")}
            given = {"case": "batch", "instruments": instruments, "metrics": f"127.0.0.1:{port}", **addresses}
            side = stack.enter_context(programs.ours(f"batch {engine}"))
            candles = side.ask("prepare", variant=engine, **given)["candles"]
            runs = [side.ask("run") for _ in range(rounds)]
            sides[f"candlemesh {engine.upper()}"] = figures("s", [run["seconds"] for run in runs], 0)
            first[engine] = min(run["first_seconds"] for run in runs)
            memory[engine] = peak_bytes(mesh.processes["indicator"].pid)
            if engine == "v2":
                leaver = stack.enter_context(programs.ours("batch leave"))
                leaver.ask("prepare", variant="v2-leave", **given)
                left = [leaver.ask("run")["seconds"] for _ in range(10)]
    seconds = sides["candlemesh V2"]["min"]
    goals.append(limited("V2, peak bytes", memory["v2"], BATCH_MEMORY_GOAL_BYTES))
    goals.append(limited("V2, seconds until a client that left is no burden", max(left), LEAVE_GOAL_SECONDS))
    return {
        "name": "batch",
        "title": f"the D3 set of {instruments} instruments x a year of 5m in one batch",
        "unit": "s",
        "rows": candles,
        "sides": sides,
        "goals": goals,
        "missing": {},
        "notes": [
            f"{candles} candles; V2 answers {candles / seconds / 1e6:.2f} million a second, the first instrument after {first['v2'] * 1e3:.0f} ms.",
            f"Peak of the indicator service {memory['v2'] / 1e6:.0f} MB by V2, {memory['v1'] / 1e6:.0f} MB by V1, ratio {memory['v2'] / memory['v1']:.2f}.",
            f"Ten clients left after twenty answers: at rest after {min(left) * 1e3:.0f} to {max(left) * 1e3:.0f} ms, by the service's metrics.",
            "Six processes on PostgreSQL; no answer is kept; candles, their transport and the answers' encoding are all in it.",
        ],
    }
