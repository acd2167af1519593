"""The servers a case needs: PostgreSQL in a folder of its own, and our mesh as processes. Ended with the case."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

# A loaded machine with two cores takes a few seconds.
WAIT_SECONDS = 60
# In start order: each needs only those before it.
ROLES = ["ingestion", "aggregation", "indicator", "sequence", "optimizer", "gateway"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(is_ready, process, what):
    started = time.monotonic()
    while not is_ready():
        if process.poll() is not None or time.monotonic() - started > WAIT_SECONDS:
            raise RuntimeError(f"{what} did not come up")
        time.sleep(0.05)


def peak_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


class Postgres:
    """Durable as installed (fsync and synchronous_commit on), with memory for a data set of this size."""

    SETTINGS = ["listen_addresses=127.0.0.1", "fsync=on", "shared_buffers=256MB", "max_wal_size=4GB", "jit=off"]

    def __init__(self):
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        if not programs:
            raise RuntimeError("PostgreSQL is not installed: apt-get install -y --no-install-recommends postgresql")
        self.programs = programs[0]
        self.folder = Path(tempfile.mkdtemp(prefix="candlemesh-bench-pg"))
        self.user = {}
        if os.geteuid() == 0:
            # The server refuses to run as root.
            entry = pwd.getpwnam("postgres")
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
            self.user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        self.port = free_port()
        self.call("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "-D", self.folder / "data")
        settings = [part for setting in self.SETTINGS for part in ("-c", setting)]
        command = [self.programs / "postgres", "-D", self.folder / "data", "-p", str(self.port), "-k", self.folder, *settings]
        self.process = subprocess.Popen(
            command, cwd=self.folder, stdout=open(self.folder / "log", "wb"), stderr=subprocess.STDOUT, **self.user
        )
        ready = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        wait_until(lambda: subprocess.run(ready).returncode == 0, self.process, "PostgreSQL")

    def call(self, program, *arguments):
        subprocess.run(
            [self.programs / program, *arguments], check=True, cwd=self.folder, stdout=subprocess.DEVNULL, **self.user
        )

    def url(self, database=""):
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    def create(self, database):
        self.call("dropdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "--if-exists", database)
        self.call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", database)

    def ask(self, database, statement):
        command = [self.programs / "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-At", "-c", statement]
        return subprocess.run([*command, database], check=True, capture_output=True, text=True).stdout.strip()

    def close(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Mesh:
    """`up` on SQLite, or six `serve` on PostgreSQL."""

    def __init__(self, program, folder):
        self.program = str(program)
        self.folder = Path(folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.processes = {}
        self.addresses = {}
        # Settings of every role, and arguments of one.
        self.environment = {}
        self.arguments = {}

    def up(self):
        self.start("up", ["up", "--data-dir", self.folder / "data", "--listen", "127.0.0.1:0"], {})
        return self

    def serve(self, database_url):
        for role in ROLES:
            upstreams = {f"CANDLEMESH_UPSTREAMS__{name.upper()}": f"http://{at}" for name, at in self.addresses.items()}
            environment = {"CANDLEMESH_DATABASE_URL": database_url, **upstreams, **self.environment}
            self.start(role, ["serve", role, "--listen", "127.0.0.1:0", *self.arguments.get(role, [])], environment)
        return self

    def start(self, name, arguments, environment):
        ready = self.folder / f"{name}.ready"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("CANDLEMESH_")}
        process = subprocess.Popen(
            [self.program, *map(str, arguments), "--ready-file", str(ready)],
            stdin=subprocess.DEVNULL,
            stdout=open(self.folder / f"{name}.log", "wb"),
            stderr=subprocess.STDOUT,
            env={**clean, **environment},
        )
        self.processes[name] = process
        wait_until(ready.exists, process, f"candlemesh {name}")
        for role, address in json.loads(ready.read_text()).items():
            self.addresses[role] = address.removeprefix("http://")

    def peaks(self):
        return {name: peak_bytes(process.pid) for name, process in self.processes.items()}

    def close(self):
        for process in reversed(self.processes.values()):
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
