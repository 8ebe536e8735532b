"""What everybody else notices while one client attacks: waits, memory, and whether the server lives and ends in time.

python benchmarks/attack.py [--model clip] [--models DIR] [--only NAME ...] [--times 1,12] [--limit-mb 512]
    [--configurations shipped,defaults] [--seconds 10] [--skip sigterm,doors,early] [--json OUT]

Starts the configuration that is shipped (metadata.json and docker/settings.json, as the container starts it) in a
memory cgroup with a hard limit, swap included, then the defaults without a limit. Every attack of tests/attacks.py runs
alone and several at once, all from one address, while three other clients ask ten times a second for a plain page, the
embedding of a text that is always new, and a page of a table. To have a cgroup takes root; without, nothing is limited.

Afterwards: SIGTERM during each attack, SIGTERM in the first moments of a server that is process 1, and instances that
are closed. Ends with exit code 1, and says what failed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datasette_vision.config.settings import Config  # noqa: E402
from datasette_vision.models.store import ModelStore  # noqa: E402
from datasette_vision.models.tasks import embeds  # noqa: E402
from tests import attacks  # noqa: E402
from tests.attacks import ATTACKS, BY_NAME, Answer, Attack, Attacker, Site, statuses  # noqa: E402

# What nobody else may wait longer for.
PAGES_S, TEXT_S = 0.5, 2.0
# Others ask this often.
EVERY_S = 0.1
# Memory may be so much more than before the attack, once it is over.
GROWTH, GROWTH_MIB = 1.1, 20
SETTLE_S, SETTLE_AT_MOST_S = 2.0, 15.0
# A server that is told to stop may take so much longer than its shutdown_seconds: to start and end a process.
END_SLACK_S = 1.0
ATTACKER = "127.0.0.66"
CGROUPS = Path("/sys/fs/cgroup")
STEPS = ("attack", "sigterm", "early", "doors")
FORK = multiprocessing.get_context("fork")
# As in the Dockerfile.
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "MALLOC_ARENA_MAX": "2",
    "OPENBLAS_NUM_THREADS": "1",
}


# Limited memory


class Cgroup:
    """A memory cgroup of its own, v1 or v2, for one server."""

    def __init__(self, limit_mb: int) -> None:
        """Make it. Raises OSError where that is not allowed."""
        name = f"datasette-vision-attack-{os.getpid()}"
        v1 = CGROUPS / "memory"
        self._v1 = (v1 / "memory.limit_in_bytes").exists() or (v1 / "memory.stat").exists()
        self.folder = (v1 if self._v1 else CGROUPS) / name
        limit = str(limit_mb << 20)
        if not self._v1:
            with contextlib.suppress(OSError):
                (CGROUPS / "cgroup.subtree_control").write_text("+memory")
        self.folder.mkdir(exist_ok=True)
        if self._v1:
            (self.folder / "memory.limit_in_bytes").write_text(limit)
            with contextlib.suppress(OSError):  # kernels that do not count swap
                (self.folder / "memory.memsw.limit_in_bytes").write_text(limit)
        else:
            (self.folder / "memory.max").write_text(limit)
            with contextlib.suppress(OSError):
                (self.folder / "memory.swap.max").write_text("0")

    def enter(self) -> None:
        """Put the calling process, and all that it starts, into the cgroup."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def reset_peak(self) -> None:
        with contextlib.suppress(OSError):
            (self.folder / ("memory.max_usage_in_bytes" if self._v1 else "memory.peak")).write_text("0")

    def peak_mib(self) -> float:
        """Return the most that was charged, files in the page cache included."""
        file = self.folder / ("memory.max_usage_in_bytes" if self._v1 else "memory.peak")
        return int(file.read_text()) / 2**20

    def kills(self) -> int:
        """Return how often the kernel killed something here for want of memory."""
        file = self.folder / ("memory.oom_control" if self._v1 else "memory.events")
        lines = dict(line.split() for line in file.read_text().splitlines())
        return int(lines.get("oom_kill", 0))

    def remove(self) -> None:
        for _ in range(50):
            with contextlib.suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.1)


def resident_mib(pid: int) -> float:
    """Return the memory of a process that is its own: not its files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) / 1024


# The server


@dataclass(frozen=True)
class Setup:
    """A configuration: what it is called, its metadata, settings and environment, and its limit."""

    name: str
    metadata: dict[str, Any]
    settings: dict[str, Any]
    limit_mb: int | None

    @property
    def config(self) -> Config:
        return Config.from_mapping(self.metadata["plugins"].get("datasette-vision"))


class Server:
    """A `datasette serve` of a folder, as the container starts it."""

    def __init__(
        self, folder: Path, setup: Setup, models: Path | None, cgroup: Cgroup | None, init: bool = False
    ) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "datasette",
            "serve",
            str(folder),
            "--memory",
            "--cors",
            "--port",
            str(self.port),
        ]
        if init:
            first = shutil.which("dumb-init", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
            if first is None:
                sys.exit("the container's process 1 is needed: pip install dumb-init, or --skip early")
            command = ["unshare", "--pid", "--fork", "--kill-child", first, "--single-child", "--", *command]
        environment = {**os.environ, **ENVIRONMENT, "TMPDIR": str(folder.parent)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        if models is not None:
            environment["DATASETTE_VISION_MODELS"] = str(models)
        self.log = folder.parent / f"{setup.name}.log"
        self.cgroup = cgroup
        self._killed = cgroup.kills() if cgroup else 0
        self._stream = self.log.open("ab")
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=self._stream,
            stderr=self._stream,
            preexec_fn=cgroup.enter if cgroup else None,
        )
        self.pid = self.process.pid

    def wait(self, timeout_s: float = 120) -> None:
        """Wait until it answers. Ends the benchmark when it does not."""
        ends = time.perf_counter() + timeout_s
        while time.perf_counter() < ends and self.alive:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                connection.request("GET", "/-/versions.json")
                connection.getresponse().read()
                connection.close()
                return
            time.sleep(0.02)
        tail = self.log.read_text("utf-8", "replace")[-2000:]
        self.kill()
        sys.exit(f"the server does not start:\n{tail}")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def why_dead(self) -> str:
        """Say how it ended."""
        killed = self.cgroup is not None and self.cgroup.kills() > self._killed
        return "killed: out of memory" if killed else f"ended with exit code {self.process.returncode}"

    def responds(self, timeout_s: float = 30) -> bool:
        """Say whether it answers a plain page."""
        answer = Attacker(Site(self.port, "", patience_s=timeout_s)).send(attacks.Request("/-/versions.json"))
        return answer.status == "200"

    def inner_pid(self) -> int:
        """Return the process that `unshare` started: in its namespace it is process 1."""
        file = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        for _ in range(500):
            if children := file.read_text().split():
                return int(children[0])
            time.sleep(0.005)
        sys.exit("unshare started nothing")

    def terminate(self, patience_s: float, pid: int | None = None) -> float | None:
        """Send SIGTERM, and return the seconds to its end; None when it does not end, and is killed."""
        began = time.perf_counter()
        os.kill(pid or self.pid, signal.SIGTERM)
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        finally:
            self._stream.close()
        return time.perf_counter() - began

    def kill(self) -> None:
        """End it now."""
        if self.alive:
            self.process.kill()
            self.process.wait(30)
        self._stream.close()
        if self.cgroup:
            self.cgroup.remove()


# The others


OTHERS = ("page", "text", "table")


@dataclass
class Waits:
    """What the others waited, by what they asked for: seconds, and answers that were no success."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in OTHERS})
    refused: Counter[str] = field(default_factory=Counter)

    def worst(self, *names: str) -> float:
        return max((max(self.seconds[name], default=0.0) for name in names), default=0.0)


def others(site: Site, stop: Any, results: Connection) -> None:
    """Ask, as three clients of addresses of their own, until told to stop; then send the Waits."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    waits = Waits()

    def request(name: str) -> attacks.Request:
        if name == "page":
            return attacks.Request("/-/versions.json")
        if name == "text":
            return attacks.as_json(attacks.EMBED, {"text": f"somebody else's {attacks.fresh()}"})
        return attacks.Request(f"/{attacks.DATABASE}/photos.json?_size=10&_shape=array&_nofacet=1&_col=name")

    def ask(name: str, source: str) -> None:
        client = Attacker(site, source)
        while not stop.is_set():
            answer = client.send(request(name))
            waits.seconds[name].append(answer.seconds)
            if answer.status != "200":
                waits.refused[f"{name} {answer.status}"] += 1
            client.answers.clear()
            time.sleep(max(0.0, EVERY_S - answer.seconds))

    threads = [
        threading.Thread(target=ask, args=(name, f"127.0.0.{number}")) for number, name in enumerate(OTHERS, start=2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.send(waits)


def attackers(attack: Attack, site: Site, prepared: Sequence[Sequence[attacks.Request]], results: Connection) -> None:
    """Attack, from as many threads as there are lists of requests; then send the answers."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(10)  # what an attacker computes does not burden a server elsewhere
    clients = [Attacker(site, ATTACKER, turn) for turn in range(len(prepared))]

    def run(client: Attacker) -> None:
        try:
            attack.run(client, prepared[client.turn])
        except Exception:
            traceback.print_exc()

    threads = [threading.Thread(target=run, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.send([answer for client in clients for answer in client.answers])


# One attack


@dataclass
class Result:
    """What came of an attack."""

    configuration: str
    attack: str
    times: int
    took_s: float = 0.0
    pages_s: float = 0.0
    text_s: float = 0.0
    refused: dict[str, int] = field(default_factory=dict)
    before_mib: float = 0.0
    peak_mib: float = 0.0
    charged_mib: float = 0.0
    after_mib: float = 0.0
    settled_mib: float = 0.0
    answers: dict[str, int] = field(default_factory=dict)
    slowest: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def line(self) -> str:
        got = ", ".join(f"{status} x{count}" for status, count in sorted(self.answers.items()))
        return (
            f"{self.attack:22}{self.times:>3}{self.took_s:8.1f}{self.pages_s:8.2f}{self.text_s:8.2f}"
            f"{self.before_mib:7.0f}{self.peak_mib:7.0f}{self.after_mib:7.0f}  {got}"
        )


HEAD = f"{'attack':22}{'n':>3}{'took s':>8}{'page s':>8}{'text s':>8}{'before':>7}{'peak':>7}{'after':>7}  attacker got"


@contextlib.contextmanager
def asked_by_others(site: Site) -> Iterator[Waits]:
    """Have the others ask while the block runs; their Waits are complete after it."""
    waits = Waits()
    stop, (ours, theirs) = FORK.Event(), FORK.Pipe(False)
    process = FORK.Process(target=others, args=(site, stop, theirs), daemon=True)
    process.start()
    try:
        yield waits
    finally:
        stop.set()
        if ours.poll(site.patience_s + 5):
            found = ours.recv()
            waits.seconds, waits.refused = found.seconds, found.refused
        process.terminate()
        process.join(10)


@contextlib.contextmanager
def attacked(attack: Attack, site: Site, times: int) -> Iterator[Connection]:
    """Attack so many times at once while the block runs; the connection gives the answers when all are there."""
    prepared = [attack.prepare(site, turn) for turn in range(times)]
    ours, theirs = FORK.Pipe(False)
    process = FORK.Process(target=attackers, args=(attack, site, prepared, theirs), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.kill()
        process.join(10)


def measure(attack: Attack, times: int, server: Server, site: Site, setup: Setup) -> Result:
    """Run an attack and see what it does to the others, and to the server."""
    result = Result(setup.name, attack.name, times)
    result.before_mib = result.peak_mib = resident_mib(server.pid)
    if server.cgroup:
        server.cgroup.reset_peak()
    answers: list[Answer] = []
    with asked_by_others(site) as waits:
        time.sleep(0.5)
        began = time.perf_counter()
        with attacked(attack, site, times) as results:
            gives_up = began + site.patience_s + site.seconds
            while not results.poll(0.02) and server.alive and time.perf_counter() < gives_up:
                result.peak_mib = max(result.peak_mib, resident_mib(server.pid))
            if results.poll():
                answers = results.recv()
            elif server.alive:
                result.failed.append(f"the attackers were not done after {time.perf_counter() - began:.0f} s")
        result.took_s = time.perf_counter() - began
        time.sleep(0.5)
    result.pages_s, result.text_s = waits.worst("page", "table"), waits.worst("text")
    result.refused = dict(waits.refused)
    result.answers = dict(statuses(answers))
    result.slowest = [
        f"{answer.seconds:.1f} s {answer.status} {answer.name}"
        for answer in sorted(answers, key=lambda answer: -answer.seconds)[:3]
    ]
    time.sleep(SETTLE_S)
    if not server.alive:
        result.failed.append(server.why_dead())
        return result
    settle(result, server)
    if not server.responds():
        result.failed.append("it does not answer any more")
    judge(result, attack, answers)
    return result


def settle(result: Result, server: Server) -> None:
    """See whether memory comes back."""
    allowed = GROWTH * result.before_mib + GROWTH_MIB
    began = time.perf_counter()
    result.after_mib = result.settled_mib = resident_mib(server.pid)
    while result.settled_mib > allowed and time.perf_counter() - began < SETTLE_AT_MOST_S and server.alive:
        time.sleep(0.5)
        result.settled_mib = resident_mib(server.pid)
    if server.cgroup:
        result.charged_mib = server.cgroup.peak_mib()
    if result.settled_mib > allowed:
        result.failed.append(f"memory stays at {result.settled_mib:.0f} MiB, {result.before_mib:.0f} before")


def judge(result: Result, attack: Attack, answers: Sequence[Answer]) -> None:
    """Say what must not be."""
    if result.pages_s > PAGES_S:
        result.failed.append(f"others waited {result.pages_s:.2f} s for a page")
    if result.text_s > TEXT_S:
        result.failed.append(f"others waited {result.text_s:.2f} s for a text embedding")
    if result.refused:
        result.failed.append(f"others were refused: {result.refused}")
    if wrong := attack.wrong(answers):
        result.failed.append(wrong)


# All of them


class Bench:
    """A folder with the configuration and the database, and the servers over it."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.failures: list[str] = []
        self.results: list[dict[str, Any]] = []
        self._server: Server | None = None
        store = ModelStore(options.models)
        self.manifest = store.find(options.model).manifest
        self.others = tuple(name for name in store.names() if name != options.model)
        if not embeds(self.manifest.task):
            sys.exit(f"{options.model} is no dual encoder")
        self.database = folder / f"{attacks.DATABASE}.db"
        attacks.write_database(self.database, options.model, self.manifest.dimensions, giants=12, many=options.many)

    def setups(self) -> list[Setup]:
        """Return the configurations that are attacked."""
        shipped = json.loads((ROOT / "metadata.json").read_text("utf-8"))
        shipped["databases"] = attacks.HIDDEN
        own = shipped["plugins"]["datasette-vision"]
        if self.options.model != own["default_model"]:
            own |= {"default_model": self.options.model, "preload": [self.options.model]}
        settings = json.loads((ROOT / "docker/settings.json").read_text("utf-8"))
        defaults = {
            "databases": attacks.HIDDEN,
            "plugins": {"datasette-vision": {"default_model": self.options.model}},
        }
        setups = [
            Setup("shipped", shipped, settings, self.options.limit_mb or None),
            Setup("defaults", defaults, {}, None),
        ]
        return [setup for setup in setups if setup.name in self.options.configurations]

    def start(self, setup: Setup, init: bool = False) -> Server:
        """Start a server in a fresh folder."""
        folder = self.folder / setup.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "metadata.json").write_text(json.dumps(setup.metadata), "utf-8")
        if setup.settings:
            (folder / "settings.json").write_text(json.dumps(setup.settings), "utf-8")
        os.link(self.database, folder / self.database.name)
        cgroup = None
        if setup.limit_mb and not init:
            try:
                cgroup = Cgroup(setup.limit_mb)
            except OSError as error:
                say(f"no memory cgroup can be made here ({error}): nothing is limited")
        self._server = Server(folder, setup, self.options.models, cgroup, init)
        return self._server

    def close(self) -> None:
        """End the server that runs, if there is one."""
        if self._server is not None:
            self._server.kill()

    def site(self, server: Server, setup: Setup) -> Site:
        config = setup.config
        return Site(
            server.port,
            self.options.model,
            self.others,
            config.max_labels,
            config.max_text_chars,
            min(config.max_inputs, config.max_queue),
            int(config.max_request_mb * 1e6),
            self.options.seconds,
            self.options.patience,
        )

    def ready(self, setup: Setup) -> tuple[Server, Site]:
        """Start a server, and have it do once what others will ask for."""
        server = self.start(setup)
        server.wait()
        site = self.site(server, setup)
        client = Attacker(site)
        for _ in range(3):
            client.send(attacks.as_json(attacks.EMBED, {"text": attacks.fresh()}))
            client.send(attacks.upload(attacks.EMBED, attacks.changed(attacks.pictures.jpeg(), 0)))
            client.send(attacks.Request(f"{attacks.SEARCH}?q={attacks.fresh()}"))
            client.send(attacks.Request(f"/-/vision/{attacks.DATABASE}/photos?q={attacks.fresh()}"))
            client.send(attacks.Request(f"/{attacks.DATABASE}/photos"))
        if wrong := [answer for answer in client.answers if answer.status not in ("200", "302")]:
            sys.exit(f"the server does not serve: {wrong[0]}")
        return server, site

    def attack(self, setup: Setup) -> None:
        """Run every attack against a configuration."""
        limit = f"{setup.limit_mb} MiB" if setup.limit_mb else "no limit"
        where = f"{self.options.model}, Python {platform.python_version()}, {os.cpu_count()} cores"
        say(f"\n{setup.name} ({limit}), {where}\n{HEAD}")
        server, site = self.ready(setup)
        quiet = Attack("(nobody)", "", "", script=lambda attacker: time.sleep(3))
        rest = None
        for times in self.options.times:
            for attack in [quiet, *self.options.attacks]:
                if not server.alive or not server.responds():
                    server.kill()
                    server, site = self.ready(setup)
                result = measure(attack, times, server, site, setup)
                rest = rest or result.after_mib
                self.report(result)
        if server.alive:
            kept = setup.config.cache_mb
            allowed = GROWTH * (rest or 0) + GROWTH_MIB + kept
            if (held := resident_mib(server.pid)) > allowed:
                self.failures.append(
                    f"{setup.name}: {held:.0f} MiB after all attacks, {rest:.0f} before, {kept} of them cache"
                )
        server.kill()

    def report(self, result: Result) -> None:
        say(result.line())
        for failed in result.failed:
            say(f"    FAILED: {failed}")
            self.failures.append(f"{result.configuration}, {result.attack} x{result.times}: {failed}")
        if result.failed and result.slowest:
            say(f"    slowest: {'; '.join(result.slowest)}")
        self.results.append(asdict(result))

    def sigterm(self, setup: Setup) -> None:
        """Send SIGTERM during each attack."""
        allowed = setup.config.shutdown_seconds + END_SLACK_S
        say(f"\n{setup.name}: seconds from SIGTERM to the end, of {setup.config.shutdown_seconds:g} allowed")
        for attack in self.options.attacks:
            server, site = self.ready(setup)
            with attacked(attack, site, self.options.times[-1]) as results:
                results.poll(1.5)
                took = server.terminate(allowed + 20) if server.alive else 0.0
            server.kill()
            say(f"{attack.name:22}{'never' if took is None else f'{took:8.2f}'}  exit code {server.process.returncode}")
            self.results.append({"configuration": setup.name, "attack": attack.name, "sigterm_s": took})
            if took is None or took > allowed:
                shown = "does not end it" if took is None else f"takes {took:.1f} s"
                self.failures.append(f"{setup.name}, {attack.name}: SIGTERM {shown}")

    def early(self, setup: Setup) -> None:
        """Send SIGTERM in the first moments of a server that is process 1 of its namespace, as in a container."""
        if os.geteuid() != 0 or not shutil.which("unshare"):
            say("\nSIGTERM to process 1: not tried, it takes root and unshare")
            return
        say(f"\n{setup.name}: seconds from SIGTERM to the end of a process 1 that has just started")
        allowed = setup.config.shutdown_seconds + END_SLACK_S
        for delay in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0):
            server = self.start(setup, init=True)
            pid = server.inner_pid()
            time.sleep(delay)
            took = server.terminate(allowed, pid)
            server.kill()
            say(f"  after {delay:.2f} s {'never' if took is None else f'{took:8.2f}'}")
            if took is None:
                self.failures.append(
                    f"{setup.name}: SIGTERM {delay:g} s after the start does not end process 1 in time"
                )

    def doors(self, setup: Setup) -> None:
        """See that nothing computes where nobody may, and that a closed instance says nothing."""
        say(f"\n{setup.name}: an instance that is closed")
        own = {**setup.metadata["plugins"]["datasette-vision"], "allow": False, "allow_metrics": True}
        idle = Setup(setup.name, {**setup.metadata, "plugins": {"datasette-vision": own}}, setup.settings, None)
        server = self.start(idle)
        server.wait()
        client = Attacker(self.site(server, idle))
        time.sleep(3)  # preloading computes as well
        before = _computed(client)
        for request in attacks.computing(client.site):
            client.send(request)
        if (after := _computed(client)) != before:
            self.failures.append(
                f'{setup.name}: with "allow": false {after - before:g} batches were computed for anonymous'
            )
        say(f"  vision-infer for nobody: {dict(statuses(client.answers))}, {after - before:g} batches computed")
        server.kill()
        shut = Setup(setup.name, {**setup.metadata, "allow": {"id": "root"}}, setup.settings, None)
        server = self.start(shut)
        server.wait()
        client = Attacker(self.site(server, shut))
        for address in attacks.ADDRESSES:
            answer = client.send(attacks.Request(address))
            if answer.status == "200":
                self.failures.append(f"{setup.name}: {address} answers anybody on a closed instance")
        say(f"  view-instance for root: {dict(statuses(client.answers))}")
        server.kill()


def _computed(client: Attacker) -> float:
    """Return how many batches a server has computed."""
    text = Attacker(client.site, kept_bytes=1_000_000).send(attacks.Request("/-/vision/metrics")).body.decode()
    lines = [line for line in text.splitlines() if line.startswith("vision_batch_size_count")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def say(line: str) -> None:
    print(line, flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="clip")
    parser.add_argument("--models", type=Path, help="folder of models; by default the user's")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="names of attacks, or items of issue lists"
    )
    parser.add_argument("--times", default="1,12", help="how many at once")
    parser.add_argument("--limit-mb", type=int, default=512, help="0: none")
    parser.add_argument("--configurations", default="shipped,defaults")
    parser.add_argument("--seconds", type=float, default=10, help="that attacks without an end go on")
    parser.add_argument("--patience", type=float, default=60, help="seconds until an attacker hangs up")
    parser.add_argument("--many", type=int, default=30_000, help="embeddings of the large table")
    parser.add_argument("--skip", default="", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.times = [int(times) for times in options.times.split(",")]
    options.configurations = options.configurations.split(",")
    options.skip = options.skip.split(",")
    if unknown := [name for name in options.only if name not in BY_NAME and name not in {a.item for a in ATTACKS}]:
        parser.error(f"--only: no attack is called {unknown[0]}; there are {', '.join(BY_NAME)}")
    options.attacks = [a for a in ATTACKS if not options.only or a.name in options.only or a.item in options.only]
    return options


def main() -> None:
    options = parsed()
    if options.list:
        for attack in ATTACKS:
            say(f"{attack.name:22} {attack.item:12} {attack.meaning}")
        return
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
        try:
            for setup in bench.setups():
                for step in STEPS:
                    if step not in options.skip:
                        getattr(bench, step)(setup)
        finally:
            bench.close()
    if options.json:
        options.json.write_text(json.dumps({"failures": bench.failures, "results": bench.results}, indent=1), "utf-8")
    if bench.failures:
        sys.exit("\nFAILED\n" + "\n".join(bench.failures))
    say("\nnothing failed")


if __name__ == "__main__":
    main()
