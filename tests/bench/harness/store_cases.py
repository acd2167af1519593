"""Store, read, month and bytes: the later ones read what the first has stored."""

from harness import cases
from harness.measure import run_case
from harness.side import SideFailed


class Stored:
    """Databases of every side, made by the store case."""

    def __init__(self, programs, options, data_folder, postgres):
        self.programs, self.options, self.data, self.postgres = programs, options, data_folder, postgres
        self.folder = programs.work / "stores"
        self.result = None
        self.ours_url = ""

    def told(self, label):
        names = {"postgres COPY": "postgres", "postgres rows": "postgres"}
        told = {"data": str(self.data), "folder": str(self.folder / names.get(label, label).replace(" ", "-"))}
        if self.postgres and label == "candlemesh PostgreSQL":
            told["database_url"] = self.ours_url or self.postgres.url("bench")
        elif self.postgres:
            told["database_url"] = self.postgres.url("peer")
        return told

    def store(self):
        """Measures storing; each of our runs gets an empty database of PostgreSQL, named bench<run>."""
        if self.result:
            return self.result
        case = cases.STORE
        runs = 1 + (case.quick_rounds if self.options.quick else case.rounds)
        if self.postgres:
            self.postgres.create("peer")
            for run in range(runs):
                self.postgres.create(f"bench{run}")
            self.postgres.create("empty")
        self.result = run_case(case, self.programs, self.options, self.told)
        ours = self.result["sides"].get("candlemesh PostgreSQL")
        if ours:
            self.ours_url = ours.pop("database_url")
            database = self.ours_url.rsplit("/", 1)[1]
            self.postgres.ask(database, "vacuum analyze")
            self.postgres.ask("peer", "vacuum analyze")
            self.postgres.ask("peer", "checkpoint")
            sizes = [self.postgres.ask(name, f"select pg_database_size('{name}')") for name in (database, "empty")]
            ours["bytes"] = int(sizes[0]) - int(sizes[1])
        for side in self.result["sides"].values():
            side.pop("database_url", None)
        return self.result

    def read(self, case):
        self.store()
        return run_case(case, self.programs, self.options, self.told)

    def bytes(self):
        stored = self.store()
        rows = stored["rows"]
        sides, goals = {}, []
        for label, side in stored["sides"].items():
            if "bytes" in side:
                figure = side["bytes"] / rows
                sides[label] = {"min": figure, "median": figure, "runs": [figure]}
        for label in cases.STORE.ours:
            for limit, is_stretch in ((cases.BYTES_GOAL, False), (cases.BYTES_STRETCH, True)):
                if label in sides:
                    goals.append(limited(label, sides[label]["min"], limit, is_stretch))
        return {
            "name": "bytes",
            "title": "bytes per candle on disk",
            "unit": "bytes",
            "rows": rows,
            "sides": sides,
            "goals": goals,
            "missing": {},
            "notes": [
                "SQLite: its files after closing. PostgreSQL: the database less an empty one, tables with their indexes; write-ahead "
                "logs are not counted on either side. Ours holds index, revisions and change log."
            ],
        }


def limited(label, value, limit, is_stretch=False):
    """A goal that is a figure, not a peer."""
    return {
        "ours": label,
        "theirs": f"limit of {limit:g}",
        "factor": 1.0,
        "is_stretch": is_stretch,
        "ratio_of_mins": value / limit,
        "ratio_of_medians": value / limit,
        "verdict": "met" if value <= limit else "missed",
    }


def scaled(programs, options, data_folder, scales):
    """Cost per candle of ours as the data grows, over SQLite."""
    sides = {}
    folder = programs.work / "stores" / "scaled"
    base = {}
    goals = []
    for scale in scales:
        for case, variant, cores in (("store", "sqlite", 2), ("read", "sqlite", 2), ("resample", "v2", 1)):
            label = f"{case} {scale}x"
            try:
                with programs.ours(label, cores) as side:
                    told = {"data": str(data_folder), "folder": str(folder), "scale": scale}
                    side.ask("prepare", case=case, variant=variant, **told)
                    rounds = 1 if scale > 4 else 2
                    runs = [side.ask("run") for _ in range(rounds + (case != "store"))][-rounds:]
            except SideFailed as error:
                options.say(f"  {label}: {error}")
                continue
            values = [run["seconds"] / run["rows"] * 1e9 for run in runs]
            sides[label] = {"min": min(values), "median": sorted(values)[len(values) // 2], "runs": values}
            sides[label]["peak_bytes"] = runs[-1]["peak_bytes"]
            base.setdefault(case, sides[label])
            if base[case] is not sides[label]:
                goals.append(grown(label, sides[label], case, base[case], scales[0]))
            options.say(f"  {label}: {min(values):.1f} ns per candle")
    return {
        "name": "scale",
        "title": "cost per candle as the data grows, candlemesh on SQLite",
        "unit": "ns per candle",
        "rows": 0,
        "sides": sides,
        "goals": goals,
        "missing": {},
        "notes": ["The data grows by instruments: twins of the same candles under other names. Flat means at most 1.25 times as much."],
    }


def grown(label, side, case, base, scale):
    ratio, median = side["min"] / base["min"], side["median"] / base["median"]
    return {
        "ours": label,
        "theirs": f"{case} {scale}x",
        "factor": 1.25,
        "is_stretch": False,
        "ratio_of_mins": ratio,
        "ratio_of_medians": median,
        "verdict": "met" if ratio <= 1.25 else "missed",
    }
