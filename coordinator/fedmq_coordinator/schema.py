"""The ledger's tables, and what takes a file of an older schema to this one.

Owns the schema's number, its text, and one migration for each step from a number to the next: a function that runs
statements in a transaction which the ledger begins and ends, so that a file is of the old schema or of the new one.
A later version adds its own migration and leaves these as they are: they write what was true then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

__all__ = ["MIGRATIONS", "SCHEMA", "SCHEMA_VERSION", "SchemaError"]

SCHEMA_VERSION = 9

Execute: TypeAlias = Callable[..., Any]
"""A statement and its values; gives a cursor."""


class SchemaError(ValueError):
    """A file of an older schema lacks what this one needs."""


SCHEMA = """
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,                  -- running | paused | stopped
    configured INTEGER NOT NULL,          -- 0: the settings name it no longer
    paused_tags TEXT NOT NULL             -- gateways with one of them are not drawn; one a line
) STRICT;
CREATE TABLE state (
    task INTEGER NOT NULL,                -- 0: of no task
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (task, key)
) STRICT;
CREATE TABLE orders (                     -- what people told the running coordinator to do, and what came of it
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    verb TEXT NOT NULL,                   -- pause | resume | stop | … of a task; ack | confirm | dismiss of an alert
    task TEXT NOT NULL,                   -- its name, as it was given; of an alert's GATEWAY/NUMBER
    details BLOB NOT NULL,                -- MessagePack, by name
    done_at REAL,                         -- NULL: not carried out yet
    done INTEGER,                         -- 0: it could not be
    result TEXT
) STRICT;
CREATE INDEX orders_waiting ON orders (id) WHERE done_at IS NULL;
CREATE TABLE gateways (
    name TEXT PRIMARY KEY,
    roster INTEGER NOT NULL UNIQUE,       -- place in the plan's bitmap, for ever
    first_seen REAL NOT NULL,
    last_seen REAL NOT NULL,
    present INTEGER NOT NULL,             -- 0 after the last will or a leave
    software TEXT NOT NULL,
    engines TEXT NOT NULL,                -- names, comma separated
    windows INTEGER NOT NULL,             -- training windows at its last birth, as the first task cuts them
    signal_bytes INTEGER NOT NULL,        -- raw signal it holds, at 16 bits a sample
    nonce BLOB NOT NULL,                  -- boot nonce of its last birth
    samples INTEGER NOT NULL DEFAULT 0,   -- of each channel, at its last birth
    tags TEXT NOT NULL DEFAULT ''         -- one a line
) STRICT;
CREATE TABLE verdicts (                   -- the last answer of every gateway to every task, kept for ever
    task INTEGER NOT NULL,
    gateway TEXT NOT NULL,
    round INTEGER NOT NULL,
    counter INTEGER NOT NULL,
    digest BLOB NOT NULL,
    verdict TEXT NOT NULL,
    PRIMARY KEY (task, gateway)
) STRICT;
CREATE TABLE wire (                       -- socket bytes, cumulative, as one process of a gateway counted them
    gateway TEXT NOT NULL,
    nonce BLOB NOT NULL,
    sent INTEGER NOT NULL,
    received INTEGER NOT NULL,
    reported_at REAL NOT NULL,
    final INTEGER NOT NULL,               -- 1: said on leaving, nothing follows; 0: a tail may not be reported yet
    beyond INTEGER,                       -- bytes that TCP/IP and TLS put around these; NULL: the gateway cannot tell
    PRIMARY KEY (gateway, nonce)
) STRICT;
CREATE TABLE gathered (                   -- by how much the signal that a gateway holds has grown, day by day (UTC)
    gateway TEXT NOT NULL,
    day INTEGER NOT NULL,                 -- since 1970
    at REAL NOT NULL,                     -- when it grew first on that day
    bytes INTEGER NOT NULL,
    PRIMARY KEY (gateway, day)
) STRICT;
CREATE TABLE marks (                      -- of a process whose first answers are summed up: where the others go on
    gateway TEXT NOT NULL,
    nonce BLOB NOT NULL,
    round INTEGER NOT NULL,               -- the last one summed up: what follows belongs to it
    sent INTEGER NOT NULL,
    received INTEGER NOT NULL,
    joined_sent INTEGER NOT NULL,         -- before its first answer
    joined_received INTEGER NOT NULL,
    beyond INTEGER NOT NULL DEFAULT 0,    -- as in wire
    joined_beyond INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (gateway, nonce)
) STRICT;
CREATE TABLE rounds (
    id INTEGER PRIMARY KEY,               -- counts through all tasks
    task INTEGER NOT NULL,
    lineage INTEGER NOT NULL,
    kind TEXT NOT NULL,                   -- statistics | training
    base INTEGER NOT NULL,                -- version trained from
    opened_at REAL NOT NULL,
    closes_at REAL NOT NULL,
    closed_at REAL,                       -- NULL while open
    outcome TEXT NOT NULL,                -- open | applied | below quorum | abandoned
    drawn INTEGER NOT NULL,               -- gateways drawn
    plan_bytes INTEGER NOT NULL,          -- the plan as published, model delta included
    level INTEGER NOT NULL,               -- how dense its updates were asked for
    training_loss REAL,                   -- weighted mean over its updates, of an applied one: what levels are set by
    version INTEGER,                      -- the version that came of it
    metric REAL,                          -- of that version
    loss REAL,
    metric_source TEXT,                   -- test set | held-out windows
    totals BLOB                           -- of its answers once they are summed up (`Folded`); NULL before
) STRICT;
CREATE INDEX rounds_of_task ON rounds (task, id);
CREATE INDEX rounds_of_lineage ON rounds (lineage, kind, id);
CREATE INDEX rounds_by_metric ON rounds (lineage, metric) WHERE metric IS NOT NULL;
CREATE TABLE answers (
    round INTEGER NOT NULL,
    gateway TEXT NOT NULL,
    received_at REAL NOT NULL,
    kind TEXT NOT NULL,                   -- update | decline | statistics
    verdict TEXT NOT NULL,
    reason TEXT,                          -- of a decline
    counter INTEGER NOT NULL,
    digest BLOB NOT NULL,
    samples INTEGER NOT NULL,             -- windows: of an update as its gateway's birth told, of statistics as counted
    weight INTEGER NOT NULL,
    payload_bytes INTEGER NOT NULL,       -- the coded delta alone
    dense_bytes INTEGER NOT NULL,         -- the same delta as float32
    nonce BLOB NOT NULL,                  -- with sent and received: the gateway's cumulative socket bytes
    sent INTEGER NOT NULL,
    received INTEGER NOT NULL,
    training_loss REAL,                   -- mean over the gateway's windows, as its update tells
    held_out_metric REAL,
    held_out_loss REAL,
    held_out_windows INTEGER,
    owed INTEGER NOT NULL DEFAULT 0,      -- accepted, and counts in the next round: its own closed below quorum
    counted_in INTEGER,                   -- round in whose sum an accepted update was first: a later one where it was
                                          -- late; NULL while it is late and waits for one to open
    payload BLOB,                         -- NULL once its version is committed
    norm REAL,                            -- L2, as decoded: of an accepted update, or one that was refused for it
    cosine REAL,                          -- of an update in a version, with the sum of the others in it
    conflicts INTEGER NOT NULL DEFAULT 0, -- how often other bytes came for the same round
    beyond INTEGER,                       -- as in wire, cumulative
    cpu INTEGER,                          -- of the gateway's process on this answer, in 1/100 s; NULL: not told
    PRIMARY KEY (round, gateway)
) STRICT;
CREATE INDEX answers_owed ON answers (round) WHERE owed = 1;
CREATE INDEX answers_kept ON answers (round) WHERE payload IS NOT NULL;
CREATE INDEX answers_counted ON answers (counted_in) WHERE counted_in IS NOT NULL;
CREATE INDEX updates_of_gateway ON answers (gateway, round) WHERE kind = 'update';
CREATE TABLE folded (                     -- of each gateway and task: its answers that are summed up
    task INTEGER NOT NULL,
    gateway TEXT NOT NULL,
    totals BLOB NOT NULL,                 -- `Folded`
    PRIMARY KEY (task, gateway)
) STRICT;
CREATE TABLE conduct (                    -- where each gateway's updates have pointed lately
    task INTEGER NOT NULL,
    gateway TEXT NOT NULL,
    lineage INTEGER NOT NULL,
    version INTEGER NOT NULL,             -- the last one that holds an update of its
    updates INTEGER NOT NULL,             -- in versions of the lineage
    direction BLOB NOT NULL,              -- sketch of their sum, older ones fading
    toward REAL,                          -- cosine of that with the others'; NULL where there was none
    PRIMARY KEY (task, gateway)
) STRICT;
CREATE TABLE flags (                      -- gateways that somebody should look at
    task INTEGER NOT NULL,
    gateway TEXT NOT NULL,
    at REAL NOT NULL,
    round INTEGER NOT NULL,               -- newest round then
    state TEXT NOT NULL,                  -- flagged | aside (ordered) | readmitted: what was before is forgotten
    reason TEXT NOT NULL,                 -- refused | against | ordered
    evidence TEXT NOT NULL,               -- in words
    PRIMARY KEY (task, gateway)
) STRICT;
CREATE TABLE versions (
    lineage INTEGER NOT NULL,             -- unique among all tasks
    number INTEGER NOT NULL,
    task INTEGER NOT NULL,
    digest BLOB NOT NULL,                 -- sha256 of the integer parameters
    parent BLOB NOT NULL,                 -- digest of the version before: the chain
    round INTEGER,
    created_at REAL NOT NULL,
    level INTEGER NOT NULL,               -- how dense its delta was coded, and the updates that start from it
    delta BLOB NOT NULL,                  -- as broadcast; empty for the start of a lineage, and once nobody can need it
    steps BLOB NOT NULL,                  -- the same as whole numbers, which need no contexts to be read
    delta_bytes INTEGER NOT NULL,         -- of the delta as it was broadcast
    PRIMARY KEY (lineage, number)
) STRICT;
CREATE INDEX versions_of_task ON versions (task, lineage);
CREATE TABLE releases (                   -- versions that were to be put in service
    task INTEGER NOT NULL,
    number INTEGER NOT NULL,              -- counts up for each task
    at REAL NOT NULL,
    lineage INTEGER NOT NULL,
    version INTEGER NOT NULL,
    canary_pct REAL NOT NULL,             -- share of the gateways, by a hash of their names
    tags TEXT NOT NULL,                   -- for gateways with one of them; one a line, empty: for all
    forced INTEGER NOT NULL,              -- 1: without a comparison
    PRIMARY KEY (task, number)
) STRICT;
CREATE TABLE trials (                     -- the last word of each gateway on what it has in service
    task INTEGER NOT NULL,
    gateway TEXT NOT NULL,
    at REAL NOT NULL,
    lineage INTEGER NOT NULL,
    version INTEGER NOT NULL,             -- the one that was tried
    in_service INTEGER NOT NULL,          -- after that
    windows INTEGER NOT NULL,
    metric REAL NOT NULL,
    before REAL,                          -- of what was in service until then; NULL: nothing was
    personal TEXT,                        -- what came of the gateway's own variant; NULL: there is none, or no word yet
    personal_windows INTEGER NOT NULL DEFAULT 0,
    personal_metric REAL,                 -- of that variant on the gateway's held-out windows
    shared_metric REAL,                   -- of what is in service, on the same
    PRIMARY KEY (task, gateway)
) STRICT;
CREATE TABLE catch_ups (                  -- answers to gateways that missed deltas, published once for all askers
    at REAL NOT NULL,
    task INTEGER NOT NULL,
    kind TEXT NOT NULL,                   -- chain | merged | keyframe
    from_version INTEGER NOT NULL,
    to_version INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    askers INTEGER NOT NULL
) STRICT;
CREATE TABLE refused (                    -- junk, counted by topic channel and reason
    channel TEXT NOT NULL,
    reason TEXT NOT NULL,
    messages INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (channel, reason)
) STRICT;
CREATE TABLE watches (                    -- of each gateway with a watch: how far it has told of its machines
    gateway TEXT PRIMARY KEY,
    book BLOB NOT NULL,                   -- which alertbook: another one counts from 1 again
    cursor INTEGER NOT NULL,              -- changes of alerts up to this one are on record
    heard_at REAL NOT NULL,
    limits BLOB NOT NULL,                 -- mark of the fleet's limits that it has; empty: none
    messages INTEGER NOT NULL,            -- that told of machines,
    bytes INTEGER NOT NULL                -- and what they came to, without MQTT's own
) STRICT;
CREATE TABLE machines (                   -- as each was when it was last told of
    gateway TEXT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,                   -- pump, motor, …
    state TEXT NOT NULL,                  -- stopped | starting | running | stopping
    zone TEXT,                            -- A to D of ISO 20816-3; NULL: it is not judged by zones
    learnt_pct INTEGER NOT NULL,          -- 100: its normal is learnt
    level REAL NOT NULL,                  -- the highest of its kinds of alert; 1.0 is the limit
    at REAL NOT NULL,                     -- of the last window that was judged
    drift TEXT NOT NULL,                  -- measures with sustained drift, one a line
    event TEXT,                           -- what made it another machine,
    baseline_at REAL,                     -- and when
    heard_at REAL NOT NULL,
    mark BLOB NOT NULL,                   -- of what was told
    PRIMARY KEY (gateway, name)
) STRICT;
CREATE TABLE alerts (                     -- as each was when it was last told of
    gateway TEXT NOT NULL,
    book BLOB NOT NULL,
    number INTEGER NOT NULL,              -- in that book
    machine TEXT NOT NULL,
    sensor TEXT NOT NULL,
    kind TEXT NOT NULL,                   -- vibration | defect | anomaly | fault | life
    state TEXT NOT NULL,                  -- open | acknowledged | confirmed | dismissed | cleared | lost
    severity TEXT NOT NULL,               -- warning | alarm
    level REAL NOT NULL,                  -- the highest that is known; 1.0 is the limit
    label TEXT,                           -- the fault that it names itself
    verdict TEXT,                         -- the fault that somebody confirmed
    opened_at REAL NOT NULL,
    from_at REAL NOT NULL,
    to_at REAL,                           -- NULL while its cause is there
    heard_at REAL NOT NULL,
    coded_evidence BLOB NOT NULL,         -- MessagePack
    PRIMARY KEY (gateway, book, number)
) STRICT;
CREATE INDEX alerts_by_time ON alerts (opened_at);
CREATE TABLE summaries (                  -- what is normal at a gateway's machines of a kind: quantiles' counts
    gateway TEXT NOT NULL,
    kind TEXT NOT NULL,
    band TEXT NOT NULL,                   -- of speed and load
    measure TEXT NOT NULL,
    count INTEGER NOT NULL,               -- of windows
    heard_at REAL NOT NULL,
    sketch BLOB NOT NULL,                 -- DDSketch
    mark BLOB NOT NULL,
    PRIMARY KEY (gateway, kind, band, measure)
) STRICT;
CREATE TABLE merged (                     -- the fleet's limits in force: medians over gateways
    kind TEXT NOT NULL,
    band TEXT NOT NULL,
    measure TEXT NOT NULL,
    gateways INTEGER NOT NULL,            -- that they are of
    at REAL NOT NULL,
    quantiles BLOB NOT NULL,              -- little-endian float32
    PRIMARY KEY (kind, band, measure)
) STRICT;
CREATE TABLE fleet_drift (                -- of a kind of machines of which many have drifted
    kind TEXT PRIMARY KEY,
    since REAL NOT NULL,
    machines INTEGER NOT NULL,
    drifting INTEGER NOT NULL,
    gateways INTEGER NOT NULL,            -- that have such ones
    measures TEXT NOT NULL                -- which, one a line
) STRICT;
CREATE TABLE spreads (                    -- how a gateway's machines of a kind hold to what is normal for each
    gateway TEXT NOT NULL,
    kind TEXT NOT NULL,
    band TEXT NOT NULL,
    measure TEXT NOT NULL,
    machines INTEGER NOT NULL,
    windows INTEGER NOT NULL,             -- as how many it is by chance
    coded_shares BLOB NOT NULL,           -- per mille of the windows in each tenth of normal, MessagePack
    heard_at REAL NOT NULL,
    mark BLOB NOT NULL,
    PRIMARY KEY (gateway, kind, band, measure)
) STRICT;
CREATE TABLE fleet_spreads (              -- the same of the whole fleet
    kind TEXT NOT NULL,
    band TEXT NOT NULL,
    measure TEXT NOT NULL,
    machines INTEGER NOT NULL,
    gateways INTEGER NOT NULL,
    coded_shares BLOB NOT NULL,
    stability REAL NOT NULL,              -- population stability index against even tenths
    of_others REAL,                       -- and without the gateways that move it most; NULL: there are too few
    bound REAL NOT NULL,                  -- beyond which the latter is drift
    since REAL,                           -- it has been; NULL: it is not
    PRIMARY KEY (kind, band, measure)
) STRICT;
"""

_FROM_3 = """
CREATE TABLE tasks (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
    configured INTEGER NOT NULL, paused_tags TEXT NOT NULL) STRICT;
ALTER TABLE state RENAME TO old_state;
CREATE TABLE state (task INTEGER NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (task, key)) STRICT;
INSERT INTO state SELECT CASE key WHEN 'federation' THEN 0 ELSE 1 END, key, value FROM old_state;
DROP TABLE old_state;
CREATE TABLE orders (id INTEGER PRIMARY KEY, at REAL NOT NULL, verb TEXT NOT NULL, task TEXT NOT NULL,
    details BLOB NOT NULL, done_at REAL, done INTEGER, result TEXT) STRICT;
CREATE INDEX orders_waiting ON orders (id) WHERE done_at IS NULL;
ALTER TABLE gateways ADD COLUMN samples INTEGER NOT NULL DEFAULT 0;
ALTER TABLE gateways ADD COLUMN tags TEXT NOT NULL DEFAULT '';
ALTER TABLE verdicts RENAME TO old_verdicts;
CREATE TABLE verdicts (task INTEGER NOT NULL, gateway TEXT NOT NULL, round INTEGER NOT NULL, counter INTEGER NOT NULL,
    digest BLOB NOT NULL, verdict TEXT NOT NULL, PRIMARY KEY (task, gateway)) STRICT;
INSERT INTO verdicts SELECT 1, gateway, round, counter, digest, verdict FROM old_verdicts;
DROP TABLE old_verdicts;
CREATE TABLE marks (gateway TEXT NOT NULL, nonce BLOB NOT NULL, round INTEGER NOT NULL, sent INTEGER NOT NULL,
    received INTEGER NOT NULL, joined_sent INTEGER NOT NULL, joined_received INTEGER NOT NULL,
    PRIMARY KEY (gateway, nonce)) STRICT;
ALTER TABLE rounds ADD COLUMN task INTEGER NOT NULL DEFAULT 1;
ALTER TABLE rounds ADD COLUMN totals BLOB;
CREATE INDEX rounds_of_task ON rounds (task, id);
CREATE INDEX rounds_of_lineage ON rounds (lineage, kind, id);
CREATE INDEX rounds_by_metric ON rounds (lineage, metric) WHERE metric IS NOT NULL;
ALTER TABLE answers ADD COLUMN counted_in INTEGER;
UPDATE answers SET counted_in = round WHERE kind = 'update' AND verdict = 'accepted';
CREATE INDEX answers_owed ON answers (round) WHERE owed = 1;
CREATE INDEX answers_kept ON answers (round) WHERE payload IS NOT NULL;
CREATE INDEX answers_counted ON answers (counted_in) WHERE counted_in IS NOT NULL;
CREATE TABLE folded (task INTEGER NOT NULL, gateway TEXT NOT NULL, totals BLOB NOT NULL,
    PRIMARY KEY (task, gateway)) STRICT;
ALTER TABLE versions ADD COLUMN task INTEGER NOT NULL DEFAULT 1;
ALTER TABLE versions ADD COLUMN delta_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE versions SET delta_bytes = length(delta);
CREATE INDEX versions_of_task ON versions (task, lineage);
CREATE TABLE releases (task INTEGER NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, lineage INTEGER NOT NULL,
    version INTEGER NOT NULL, canary_pct REAL NOT NULL, tags TEXT NOT NULL, forced INTEGER NOT NULL,
    PRIMARY KEY (task, number)) STRICT;
CREATE TABLE trials (task INTEGER NOT NULL, gateway TEXT NOT NULL, at REAL NOT NULL, lineage INTEGER NOT NULL,
    version INTEGER NOT NULL, in_service INTEGER NOT NULL, windows INTEGER NOT NULL, metric REAL NOT NULL, before REAL,
    PRIMARY KEY (task, gateway)) STRICT;
ALTER TABLE catch_ups ADD COLUMN task INTEGER NOT NULL DEFAULT 1;
"""


def _from_3(execute: Execute) -> None:
    """One task, of which no row said that it was the only one. Its name and windows stand in its coded body."""
    _run_all(execute, _FROM_3)
    began = execute("SELECT value FROM state WHERE key = 'began'").fetchone()
    lineage = execute("SELECT value FROM state WHERE key = 'lineage'").fetchone()
    if began is not None and lineage is not None:
        # It was how many training rounds there had been, and is the last one of them.
        last = execute(
            "SELECT id FROM rounds WHERE lineage = ? AND kind = 'training' ORDER BY id LIMIT 1 OFFSET ?",
            (int(lineage[0]), max(0, int(began[0]) - 1)),
        ).fetchone()
        last_id = 0 if last is None or not int(began[0]) else int(last[0])
        execute("UPDATE state SET value = ? WHERE key = 'began'", (str(last_id).encode(),))
    body = execute("SELECT value FROM state WHERE key = 'task_body'").fetchone()
    if body is None:
        return
    try:
        task = msgspec.msgpack.decode(body[0])
        windowing = task["windowing"] if isinstance(task, dict) else task[3]
        name = task["name"] if isinstance(task, dict) else task[0]
        channels = windowing.get("channels", 1) if isinstance(windowing, dict) else windowing[5]
        execute("INSERT INTO tasks VALUES (1, ?, 'running', 1, '')", (str(name),))
        execute("UPDATE gateways SET samples = signal_bytes / ?", (2 * int(channels),))
    except (msgspec.MsgspecError, KeyError, IndexError, TypeError, ValueError) as error:
        raise SchemaError(f"its task cannot be read ({error}): restore the file from a backup") from error


_FROM_4 = """
ALTER TABLE trials ADD COLUMN personal TEXT;
ALTER TABLE trials ADD COLUMN personal_windows INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trials ADD COLUMN personal_metric REAL;
ALTER TABLE trials ADD COLUMN shared_metric REAL;
"""


def _from_4(execute: Execute) -> None:
    """No gateway had a model of its own."""
    _run_all(execute, _FROM_4)


_FROM_5 = """
ALTER TABLE answers ADD COLUMN norm REAL;
ALTER TABLE answers ADD COLUMN cosine REAL;
ALTER TABLE answers ADD COLUMN conflicts INTEGER NOT NULL DEFAULT 0;
CREATE INDEX updates_of_gateway ON answers (gateway, round) WHERE kind = 'update';
CREATE TABLE conduct (task INTEGER NOT NULL, gateway TEXT NOT NULL, lineage INTEGER NOT NULL,
    version INTEGER NOT NULL, updates INTEGER NOT NULL, direction BLOB NOT NULL, toward REAL,
    PRIMARY KEY (task, gateway)) STRICT;
CREATE TABLE flags (task INTEGER NOT NULL, gateway TEXT NOT NULL, at REAL NOT NULL, round INTEGER NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL, evidence TEXT NOT NULL, PRIMARY KEY (task, gateway)) STRICT;
"""


def _from_5(execute: Execute) -> None:
    """Nobody looked where updates pointed: norms are gathered from now on."""
    _run_all(execute, _FROM_5)


_FROM_6 = """
CREATE TABLE watches (
    gateway TEXT PRIMARY KEY,
    book BLOB NOT NULL,
    cursor INTEGER NOT NULL,
    heard_at REAL NOT NULL,
    limits BLOB NOT NULL,
    messages INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE machines (
    gateway TEXT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    zone TEXT,
    learnt_pct INTEGER NOT NULL,
    level REAL NOT NULL,
    at REAL NOT NULL,
    drift TEXT NOT NULL,
    event TEXT,
    baseline_at REAL,
    heard_at REAL NOT NULL,
    mark BLOB NOT NULL,
    PRIMARY KEY (gateway, name)
) STRICT;
CREATE TABLE alerts (
    gateway TEXT NOT NULL,
    book BLOB NOT NULL,
    number INTEGER NOT NULL,
    machine TEXT NOT NULL,
    sensor TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    severity TEXT NOT NULL,
    level REAL NOT NULL,
    label TEXT,
    verdict TEXT,
    opened_at REAL NOT NULL,
    from_at REAL NOT NULL,
    to_at REAL,
    heard_at REAL NOT NULL,
    coded_evidence BLOB NOT NULL,
    PRIMARY KEY (gateway, book, number)
) STRICT;
CREATE INDEX alerts_by_time ON alerts (opened_at);
CREATE TABLE summaries (
    gateway TEXT NOT NULL,
    kind TEXT NOT NULL,
    band TEXT NOT NULL,
    measure TEXT NOT NULL,
    count INTEGER NOT NULL,
    heard_at REAL NOT NULL,
    sketch BLOB NOT NULL,
    mark BLOB NOT NULL,
    PRIMARY KEY (gateway, kind, band, measure)
) STRICT;
CREATE TABLE merged (
    kind TEXT NOT NULL,
    band TEXT NOT NULL,
    measure TEXT NOT NULL,
    gateways INTEGER NOT NULL,
    at REAL NOT NULL,
    quantiles BLOB NOT NULL,
    PRIMARY KEY (kind, band, measure)
) STRICT;
CREATE TABLE fleet_drift (
    kind TEXT PRIMARY KEY,
    since REAL NOT NULL,
    machines INTEGER NOT NULL,
    drifting INTEGER NOT NULL,
    gateways INTEGER NOT NULL,
    measures TEXT NOT NULL
) STRICT;
"""


def _from_6(execute: Execute) -> None:
    """No gateway told of its machines."""
    _run_all(execute, _FROM_6)


_FROM_7 = """
ALTER TABLE wire ADD COLUMN beyond INTEGER;
ALTER TABLE marks ADD COLUMN beyond INTEGER NOT NULL DEFAULT 0;
ALTER TABLE marks ADD COLUMN joined_beyond INTEGER NOT NULL DEFAULT 0;
ALTER TABLE answers ADD COLUMN beyond INTEGER;
ALTER TABLE answers ADD COLUMN cpu INTEGER;
CREATE TABLE gathered (gateway TEXT NOT NULL, day INTEGER NOT NULL, at REAL NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (gateway, day)) STRICT;
INSERT INTO gathered SELECT name, CAST(first_seen / 86400 AS INTEGER), first_seen, signal_bytes FROM gateways
    WHERE signal_bytes > 0;
"""


def _from_7(execute: Execute) -> None:
    """Nobody told what TCP/IP and TLS added, nor of CPU time; all signal at hand came with the gateway."""
    _run_all(execute, _FROM_7)


_FROM_8 = """
CREATE TABLE spreads (gateway TEXT NOT NULL, kind TEXT NOT NULL, band TEXT NOT NULL, measure TEXT NOT NULL,
    machines INTEGER NOT NULL, windows INTEGER NOT NULL, coded_shares BLOB NOT NULL, heard_at REAL NOT NULL,
    mark BLOB NOT NULL, PRIMARY KEY (gateway, kind, band, measure)) STRICT;
CREATE TABLE fleet_spreads (kind TEXT NOT NULL, band TEXT NOT NULL, measure TEXT NOT NULL, machines INTEGER NOT NULL,
    gateways INTEGER NOT NULL, coded_shares BLOB NOT NULL, stability REAL NOT NULL, of_others REAL,
    bound REAL NOT NULL, since REAL, PRIMARY KEY (kind, band, measure)) STRICT;
"""


def _from_8(execute: Execute) -> None:
    """No gateway told how its machines hold to what is normal for them."""
    _run_all(execute, _FROM_8)


MIGRATIONS: dict[int, Callable[[Execute], None]] = {
    3: _from_3,
    4: _from_4,
    5: _from_5,
    6: _from_6,
    7: _from_7,
    8: _from_8,
}
"""What takes a file of this schema to the next one, within a transaction."""


def _run_all(execute: Execute, sql: str) -> None:
    """Statement by statement: `executescript` would commit the transaction at hand."""
    for statement in sql.split(";\n"):
        if statement.strip():
            execute(statement)
