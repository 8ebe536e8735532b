"""The checklist for operators of public servers: one table, which the command evaluates and the docs show.

Each item is a function that examines a Deployment and returns its findings, under the texts that belong to it.
`datasette vision check` runs the functions, and docs/security.md is generated from the texts, so that the two cannot
differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from datasette_vision.config.values import FLY
from datasette_vision.plugin.checks.deployment import Deployment

OK, ADVICE, PROBLEM = "ok", "advice", "problem"

# The memory of Datasette with ONNX Runtime, besides models, measured with the bundled model, in bytes.
BARE_BYTES = 130_000_000
# Bodies and responses held at a time, in multiples of the largest request: limits.py has two of each.
LARGEST_REQUESTS = 4
# The share of the memory that the cache of embeddings may take.
CACHE_PART = 4

Finding = tuple[str, str]
Check = Callable[[Deployment], Finding]


@dataclass(frozen=True)
class ChecklistItem:
    """An item of the checklist: the goal, the reason, and the setting to change."""

    name: str
    wanted: str
    why: str
    setting: str
    check: Check


@dataclass(frozen=True)
class ItemResult:
    """The finding for an item. Its level is OK, ADVICE or PROBLEM."""

    item: ChecklistItem
    level: str
    found: str

    def to_json(self) -> dict[str, str]:
        """Return the JSON for --json."""
        shown = {"name": self.item.name, "level": self.level, "found": self.found}
        return shown if self.level == OK else {**shown, "why": self.item.why, "setting": self.item.setting}


def evaluate(deployment: Deployment) -> Iterator[ItemResult]:
    """Yield the finding for each item; for an invalid configuration, only that."""
    for each in ITEMS:
        yield ItemResult(each, *each.check(deployment))
        if deployment.config_error is not None:
            return


def checklist_item(name: str, wanted: str, why: str, setting: str) -> Callable[[Check], ChecklistItem]:
    """Make an item of the checklist from the function that checks it."""
    return lambda check: ChecklistItem(name, wanted, why, setting, check)


@checklist_item(
    "configuration",
    "The configuration can be read, and the models it names are installed.",
    "A server with a mistake in its configuration does not start.",
    "see the message; `datasette vision verify` checks the models' files",
)
def _configuration(deployment: Deployment) -> Finding:
    if deployment.config_error is not None:
        return PROBLEM, deployment.config_error
    return OK, "the configuration can be read, and the models that it names are installed"


@checklist_item(
    "databases",
    "Every database can be read.",
    "A damaged or locked file answers every page with an error.",
    "`sqlite3 FILE 'pragma integrity_check'`, or a backup",
)
def _databases(deployment: Deployment) -> Finding:
    if deployment.unreadable:
        return PROBLEM, "; ".join(f"{name} cannot be read: {reason}" for name, reason in deployment.unreadable)
    return OK, f"{_count(len(deployment.files), 'database file')} can be read"


@checklist_item(
    "hidden-by-sql",
    "Nobody runs SQL on a database in which something is hidden from them.",
    "SQL reads every table of its database: it does not check permissions of tables.",
    '`"databases": {"NAME": {"allow_sql": {"id": "*"}}}`, or `--setting default_allow_sql off`; on 1.0 also'
    ' `"permissions": {"execute-sql": {"id": "*"}}`',
)
def _hidden_sql(deployment: Deployment) -> Finding:
    access = deployment.access
    readable = _of(access.hidden, access.sql)
    if readable:
        return PROBLEM, f"anyone may run SQL on the database of {_names(readable)}, and so read what is hidden"
    if access.hidden:
        return OK, f"nobody without an actor may run SQL where something is hidden: {_names(access.hidden)}"
    return OK, "nothing is hidden from those who may run SQL"


@checklist_item(
    "crossdb",
    "`--crossdb` is off where a database or table is hidden.",
    "It attaches all databases to `_memory`, whose permission to run SQL then opens them all.",
    'no `--crossdb`, or `"databases": {"_memory": {"allow_sql": {"id": "*"}}}`',
)
def _crossdb(deployment: Deployment) -> Finding:
    if not deployment.serve.get("crossdb"):
        return OK, "databases are not joined"
    access = deployment.access
    if access.hidden and "_memory" in access.sql:
        return PROBLEM, f"with --crossdb anyone may read {_names(access.hidden)} by SQL on _memory"
    return OK, "with --crossdb, and nothing is hidden from those who may run SQL on _memory"


@checklist_item(
    "download",
    "Nobody downloads a database in which something is hidden from them.",
    "An immutable database can be downloaded whole.",
    "`--setting allow_download off`",
)
def _download(deployment: Deployment) -> Finding:
    access = deployment.access
    fetched = _of(access.hidden, access.downloads)
    if fetched:
        return PROBLEM, f"anyone may download the file in which {_names(fetched)} is hidden"
    if access.downloads:
        return OK, f"anyone may download {_names(access.downloads)}, in which nothing is hidden"
    return OK, "no database can be downloaded without an actor"


@checklist_item(
    "default-deny",
    "Where something is hidden, what is not allowed is denied.",
    "A list of hidden tables does not include the table that is added tomorrow.",
    '`--default-deny` on 1.0; on 0.65 `"allow": {"id": "*"}` for the database, and `"allow": true` for tables',
)
def _default_deny(deployment: Deployment) -> Finding:
    if not deployment.hides:
        return OK, "everything is public"
    if deployment.serve.get("default_deny") or not deployment.access.instance:
        return OK, "what is not allowed is denied"
    excuse = "" if deployment.is_1_0 else "; Datasette 0.65 has no other way"
    return ADVICE, f"some tables are hidden, and whatever is added later is public{excuse}"


@checklist_item(
    "originals",
    "Original files are shown to those who may know where they were taken.",
    "EXIF holds the place, the time, the camera's number and often a name. Thumbnails hold none of it.",
    "`datasette vision load` without `--originals`, or an `allow` block for the table",
)
def _originals(deployment: Deployment) -> Finding:
    if public := _public(deployment, deployment.originals):
        return ADVICE, f"{_names(public)} holds files as the camera wrote them, with the place and the owner's name"
    return OK, "no table that anyone may see holds original files"


@checklist_item(
    "places",
    "Coordinates are shown to those who may know them.",
    "`datasette vision load` records latitude and longitude, which lead to the photographer's home.",
    "`update photos set latitude = null, longitude = null`, or an `allow` block for the table",
)
def _places(deployment: Deployment) -> Finding:
    if public := _public(deployment, deployment.located):
        return ADVICE, f"anyone may read in {_names(public)} where photos were taken"
    return OK, "no table that anyone may see says where photos were taken"


@checklist_item(
    "who-computes",
    "You know who may run models.",
    "Running models is the main cost of a request; everything else is answered from the database.",
    "`allow` (the permission `vision-infer`)",
)
def _compute(deployment: Deployment) -> Finding:
    if deployment.access.infer:
        return OK, "anyone may run models: only the limits below protect the cores"
    return OK, "nobody without an actor may run models"


@checklist_item(
    "rate-limit",
    "The number of inputs computed for each client is limited.",
    "Queues are fair to clients, but a client with a thousand addresses is a thousand clients.",
    "`rate_limit`, and a limit on connections at the platform",
)
def _rate_limit(deployment: Deployment) -> Finding:
    if not deployment.access.infer:
        return OK, "nobody without an actor may run models"
    limit = deployment.config.rate_limit
    if limit is None:
        return PROBLEM, "one client may keep all cores busy for as long as it likes"
    if isinstance(limit, int):
        return OK, f"a client has {limit:,} inputs a minute computed"
    rates = {"images": limit.images, "texts": limit.texts}
    free = [kind for kind, rate in rates.items() if rate is None]
    if free:
        return PROBLEM, f"one client may have any number of {' and '.join(free)} computed"
    return OK, "a client has " + " and ".join(f"{rate:,} {kind}" for kind, rate in rates.items()) + " a minute computed"


@checklist_item(
    "proxies",
    "Clients are identified by addresses that they cannot forge.",
    "A client that can choose an address has a new rate for each; clients that share a proxy's address share its rate.",
    '`trusted_proxies`: the number of proxies in front, their networks, or `"fly"`',
)
def _proxies(deployment: Deployment) -> Finding:
    trusted = deployment.config.trusted_proxies
    is_local = deployment.serve.get("host") in (None, "127.0.0.1", "::1", "localhost") or deployment.serve.get("uds")
    on_fly = "FLY_APP_NAME" in deployment.environ
    if trusted is None:
        if deployment.config.rate_limit is not None and deployment.access.infer and (on_fly or is_local):
            return ADVICE, "trusted_proxies is not set: behind a proxy all clients have its address, and one rate"
        return OK, "a client's address is that of its connection: no header changes it"
    if trusted == FLY:
        where = "Fly.io says which address a client has" if on_fly else "no header counts but on Fly.io"
        return OK, where
    if isinstance(trusted, tuple) and any(ip_network(network).prefixlen == 0 for network in trusted):
        return PROBLEM, "trusted_proxies trusts every address: a client can forge its address"
    if isinstance(trusted, int) and not is_local:
        return ADVICE, "a client that reaches this port without the proxies can forge its address"
    return OK, "trusted proxies report the addresses of clients"


@checklist_item(
    "metrics",
    "Only operators can read the metrics.",
    "They show what is requested, from which models, and when.",
    "`allow_metrics`",
)
def _metrics(deployment: Deployment) -> Finding:
    if deployment.access.metrics:
        return ADVICE, "anyone may read the metrics: how much is requested, from which models, and when"
    return OK, "nobody without an actor may read the metrics"


@checklist_item(
    "other-models",
    "Every installed model may be loaded by anyone.",
    "A model is loaded when its name is used, and its memory counts.",
    "`datasette vision remove NAME`, a separate `models_dir`, or `unload_after`",
)
def _models(deployment: Deployment) -> Finding:
    others = sorted(set(deployment.weights) - set(deployment.config.named_models()))
    if not others or not deployment.access.infer:
        return OK, "only the models that the configuration names can be loaded" if not others else "nobody may"
    needed = BARE_BYTES + sum(deployment.weights.values())
    found = f"anyone may load these too, by name: {_names(others)}"
    if deployment.memory_bytes is not None and needed > deployment.memory_bytes:
        return PROBLEM, f"{found}; all together take {_mb(needed)} of the {_mb(deployment.memory_bytes)} available"
    return OK, found


@checklist_item(
    "memory",
    "What the limits allow fits in the memory of the machine.",
    "A process that outgrows its memory is killed, with all requests in it.",
    "`cache_mb`, `max_request_mb`, a smaller model, or more memory",
)
def _memory(deployment: Deployment) -> Finding:
    config, available = deployment.config, deployment.memory_bytes
    if available is None:
        return ADVICE, "the memory of the process is unknown: pass --memory-mb"
    parts = {
        "Datasette": BARE_BYTES,
        "the models named": deployment.named_weights(),
        "cache_mb": config.cache_mb * 1_000_000,
        "requests (max_request_mb)": int(LARGEST_REQUESTS * config.max_request_mb * 1_000_000),
    }
    needed = sum(parts.values())
    shown = ", ".join(f"{name} {_mb(size)}" for name, size in parts.items())
    if needed > available:
        return PROBLEM, f"{shown}: {_mb(needed)} together, and the process may use {_mb(available)}"
    return OK, f"{shown}: {_mb(needed)} of {_mb(available)}, and {_mb(available - needed)} are left for images"


@checklist_item(
    "cache",
    "The cache of embeddings leaves enough memory for the rest.",
    "It grows to its limit and stays there.",
    "`cache_mb`",
)
def _cache(deployment: Deployment) -> Finding:
    size, available = deployment.config.cache_mb * 1_000_000, deployment.memory_bytes
    if available is not None and size * CACHE_PART > available:
        return ADVICE, f"embeddings may take {_mb(size)} of {_mb(available)}"
    return OK, f"embeddings take {_mb(size)} at most"


@checklist_item(
    "sql-time",
    "Queries end soon.",
    "A query holds one of the few SQL threads until then.",
    "`--setting sql_time_limit_ms 1000`",
)
def _sql_time(deployment: Deployment) -> Finding:
    limit = deployment.settings["sql_time_limit_ms"]
    if not deployment.access.sql:
        return OK, "nobody without an actor may run SQL"
    if limit == 0 or limit > 10_000:
        return PROBLEM, f"anyone's query may run for {limit / 1000:g} s" if limit else "a query may run forever"
    if limit > 5_000:
        return ADVICE, f"anyone's query may run for {limit / 1000:g} s"
    return OK, f"a query runs for {limit / 1000:g} s at most"


@checklist_item(
    "sql-threads",
    "There are SQL threads.",
    "Without them, queries run on the event loop and block all requests.",
    "`--setting num_sql_threads 3`",
)
def _sql_threads(deployment: Deployment) -> Finding:
    threads = deployment.settings["num_sql_threads"]
    if threads == 0:
        return PROBLEM, "num_sql_threads is 0: while one query runs, no other request is answered"
    if threads == 1:
        return ADVICE, "there is one SQL thread: each query waits for the one before"
    return OK, f"{threads} threads run SQL"


@checklist_item(
    "rows",
    "Results of SQL queries are limited.",
    "Rows with embeddings or images are held in memory until they are sent.",
    "`--setting max_returned_rows 1000`, `--setting max_csv_mb 100`",
)
def _rows(deployment: Deployment) -> Finding:
    rows, csv = deployment.settings["max_returned_rows"], deployment.settings["max_csv_mb"]
    if rows > 10_000:
        return ADVICE, f"a page holds up to {rows:,} rows in memory, embeddings and all"
    if csv == 0 and deployment.settings["allow_csv_stream"]:
        return ADVICE, "max_csv_mb is 0: a CSV may have any size"
    return OK, f"a page has {rows:,} rows at most, a CSV {csv} MB"


@checklist_item(
    "facets",
    "Facet counts are limited.",
    "A facet reads the whole table.",
    "`--setting suggest_facets off`, `--setting allow_facet off`, `--setting facet_time_limit_ms 200`",
)
def _facets(deployment: Deployment) -> Finding:
    limit = deployment.settings["facet_time_limit_ms"]
    if not deployment.settings["allow_facet"]:
        return OK, "only the facets that are configured are counted"
    if limit > 1_000:
        return ADVICE, f"anyone may count any column, for {limit / 1000:g} s each"
    if deployment.settings["suggest_facets"] and deployment.embedded:
        return ADVICE, "each page of a table tries which of its columns would make facets"
    return OK, f"anyone may count any column, for {limit} ms at most"


@checklist_item(
    "debug",
    "No page reveals how it was made.",
    "`?_trace=1` shows the SQL of a page, `?_context=1` the whole context of its template.",
    "`--setting trace_debug off`, `--setting template_debug off`",
)
def _debug(deployment: Deployment) -> Finding:
    shown = [name for name in ("trace_debug", "template_debug") if deployment.settings.get(name)]
    if "template_debug" in shown and not deployment.hides:
        shown.remove("template_debug")
    if shown:
        return PROBLEM, f"{' and '.join(shown)} shows anyone the SQL and the context of templates"
    return OK, "no page reveals how it was made"


@checklist_item(
    "secret",
    "Cookies and tokens are signed with a permanent secret that cannot be guessed.",
    "Anyone who knows the secret can act as any user.",
    "`DATASETTE_SECRET`, 32 random bytes in hexadecimal",
)
def _secret(deployment: Deployment) -> Finding:
    secret = deployment.serve.get("secret")
    if not secret:
        return ADVICE, "no secret is set: each start makes a new one, which signs everybody out"
    if len(secret) < 16:
        return PROBLEM, f"the secret has {len(secret)} characters: cookies and tokens can be forged by guessing it"
    return OK, "a secret is set"


@checklist_item(
    "cors",
    "Pages of other origins read only what everyone may read.",
    "With `--cors`, browsers let any page read responses. They send no cookies, but a page can send a token.",
    "no `--cors`, or tokens restricted to their purpose",
)
def _cors(deployment: Deployment) -> Finding:
    if not deployment.serve.get("cors"):
        return OK, "pages of other origins may not read responses"
    if deployment.hides:
        return ADVICE, (
            "pages of every origin may read responses; none gets a cookie with --cors, but a token in a page"
            " can be used"
            " from any other"
        )
    return OK, "pages of every origin may read what everyone may read; no cookie is sent with --cors"


@checklist_item(
    "robots",
    "Crawlers are kept away from expensive pages.",
    "A search for similar rows, for each of a million rows, is a million links.",
    "`datasette install datasette-block-robots`",
)
def _robots(deployment: Deployment) -> Finding:
    if "datasette-block-robots" in deployment.plugins:
        return OK, "crawlers are asked to stay away"
    if not deployment.access.instance:
        return OK, "crawlers see nothing"
    return ADVICE, "crawlers follow every link: facets, sorted pages, searches for similar rows"


@checklist_item(
    "user",
    "The server runs as a separate user.",
    "A vulnerability is limited by the permissions of this user.",
    "`User=` in systemd, `USER` in a Dockerfile; ours set it",
)
def _superuser(deployment: Deployment) -> Finding:
    if deployment.superuser:
        return ADVICE, "this runs as root"
    return OK, "this does not run as root"


@checklist_item(
    "models-dir",
    "The server cannot write to its models.",
    "Files are checked when they are loaded, against a manifest beside them.",
    "`chown root` and `chmod -R go-w` for the folder",
)
def _models_dir(deployment: Deployment) -> Finding:
    if deployment.models_dir is None or not deployment.models_dir.is_dir():
        return OK, "there is no folder of installed models: only the bundled one is used"
    if deployment.models_dir_writable:
        return ADVICE, f"the user that runs this may write to {deployment.models_dir}"
    return OK, f"the user that runs this may only read {deployment.models_dir}"


@checklist_item(
    "files",
    "The server can write only to databases that it has to change.",
    "A database that cannot be written to cannot be changed, whatever happens.",
    "`-i FILE`, or read-only for the user of the server",
)
def _files(deployment: Deployment) -> Finding:
    writable = sorted(str(file.path) for file in deployment.files if file.writable and file.mutable)
    if not writable or deployment.config.auto_embed is not None:
        return OK, "no database can be written to" if not writable else "auto_embed writes to databases"
    return ADVICE, f"Datasette may write to {_names(writable)}"


@checklist_item(
    "auto-embed",
    "Databases that `auto_embed` keeps in sync are writable.",
    "It needs the file and its folder. Rows are embedded whoever added them.",
    "`auto_embed`, and the permissions `insert-row` and `create-table`",
)
def _auto_embed(deployment: Deployment) -> Finding:
    if deployment.config.auto_embed is None:
        return OK, "nothing is embedded automatically"
    fixed = sorted(str(file.path) for file in deployment.files if not (file.writable and file.mutable))
    if fixed:
        return ADVICE, f"auto_embed is set, and these cannot be written to: {_names(fixed)}"
    return OK, "people who may add rows to a table have them embedded, without a rate limit"


@checklist_item(
    "shutdown",
    "The platform waits longer than `shutdown_seconds`.",
    "Interrupted work is repeated; an interrupted database has to be recovered.",
    "`shutdown_seconds`; `docker stop --time`, `kill_timeout` of fly.toml, `TimeoutStopSec` of systemd",
)
def _shutdown(deployment: Deployment) -> Finding:
    wanted, given = deployment.config.shutdown_seconds, deployment.kill_after_s
    if given is None and "K_SERVICE" in deployment.environ:
        given = 10.0  # Cloud Run
    if given is None:
        return OK, f"work has {wanted:g} s to finish; --kill-after says how long the platform waits"
    if wanted >= given:
        return PROBLEM, f"shutdown_seconds is {wanted:g}, and the platform kills the process {given:g} s after SIGTERM"
    return OK, f"shutdown_seconds is {wanted:g}, and the platform waits {given:g} s"


@checklist_item(
    "unload",
    "Idle models are unloaded before the process ends.",
    "An unused model holds its memory until it is unloaded.",
    "`unload_after`",
)
def _unload(deployment: Deployment) -> Finding:
    unload, sleep = deployment.config.unload_after, _seconds(_scale_to_zero(deployment))
    if unload is not None and sleep is not None and unload >= sleep:
        return (
            ADVICE,
            f"the process ends after {sleep:g} s without requests: unload_after ({unload:g}) is too long to"
            f" have an effect",
        )
    return OK, "models stay in memory" if unload is None else f"a model is unloaded {unload:g} s after its last use"


@checklist_item(
    "sleep",
    "The platform starts the process again on demand.",
    "datasette-scale-to-zero ends it after some time without requests.",
    "`duration` of datasette-scale-to-zero; without the plugin on Cloud Run and under systemd",
)
def _scale_to_zero_check(deployment: Deployment) -> Finding:
    if "datasette-scale-to-zero" not in deployment.plugins:
        return OK, "datasette-scale-to-zero is not installed"
    duration = _scale_to_zero(deployment)
    seconds = _seconds(duration)
    if duration is None:
        return OK, "datasette-scale-to-zero is installed but not configured"
    if seconds is None:
        return PROBLEM, f"datasette-scale-to-zero: duration: expected a number and s, m or h, found {duration!r}"
    if "K_SERVICE" in deployment.environ or "INVOCATION_ID" in deployment.environ:
        return PROBLEM, "datasette-scale-to-zero ends the process, and this platform does not expect that"
    if seconds < 60:
        return ADVICE, f"the process ends after {seconds:g} s without requests, and each start takes a second or more"
    return OK, f"the process ends after {seconds:g} s without requests"


def _scale_to_zero(deployment: Deployment) -> str | None:
    duration = deployment.plugin_config.get("datasette-scale-to-zero", {}).get("duration")
    return None if duration is None else str(duration)


def _seconds(duration: str | None) -> float | None:
    """Parse 30s, 10m or 2h."""
    if not duration or duration[-1] not in "smh" or not duration[:-1].isdigit():
        return None
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def _public(deployment: Deployment, tables: Iterable[str]) -> list[str]:
    """Return those of some tables that anyone may see."""
    return sorted(set(tables) & set(deployment.access.visible))


def _of(tables: list[str], databases: list[str]) -> list[str]:
    return [table for table in tables if table.partition("/")[0] in databases]


def _names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


ITEMS = (
    _configuration, _databases, _hidden_sql, _crossdb, _download, _default_deny, _originals, _places, _compute,
    _rate_limit, _proxies, _metrics, _models, _memory, _cache, _sql_time, _sql_threads, _rows, _facets, _debug,
    _secret, _cors, _robots, _superuser, _models_dir, _files, _auto_embed, _shutdown, _unload,
    _scale_to_zero_check,
)  # fmt: skip
