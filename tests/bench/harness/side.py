"""The processes that are measured: each answers a line of JSON with a line of JSON."""

import json
import os
import subprocess
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent
ROOT = BENCH.parent.parent


class SideFailed(Exception):
    """A side said no, or ended; the text is the end of what it printed."""


class Side:
    """A worker of ours or of a peer. `cores` of 1 ties it to the last core, and its libraries to one thread."""

    def __init__(self, label, command, log, cores=2, env=None):
        self.label = label
        self.log = Path(log)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # An error is told by its last lines; a backtrace would push them out.
        environment = dict(os.environ, PYTHONPATH=str(BENCH), RUST_BACKTRACE="0", **(env or {}))
        if cores == 1:
            environment.update(POLARS_MAX_THREADS="1", OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1")
            core = max(os.sched_getaffinity(0))
            command = ["taskset", "-c", str(core), *command]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(self.log, "wb"),
            text=True,
            cwd=BENCH,
            env=environment,
        )

    def ask(self, op, **request):
        try:
            self.process.stdin.write(json.dumps({"op": op, **request}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            lines = self.log.read_text(errors="replace").strip().splitlines()
            raise SideFailed(f"{self.label}: {' / '.join(lines[-3:])}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Programs:
    """Where the two kinds of workers are, and where they write."""

    def __init__(self, target, python, work):
        self.bench = Path(target).resolve() / "release" / "candlemesh-bench"
        self.candlemesh = Path(target).resolve() / "release" / "candlemesh-under-test"
        self.python = Path(python).absolute()
        self.work = Path(work).absolute()

    def ours(self, label, cores=2):
        return Side(label, [str(self.bench)], self.work / "logs" / f"{label}.log", cores)

    def peer(self, label, cores=2):
        log = self.work / "logs" / f"{label}.log"
        return Side(label, [str(self.python), "-m", "peers.worker"], log, cores)
