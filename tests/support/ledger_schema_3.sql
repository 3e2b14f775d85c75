CREATE TABLE state (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;
CREATE TABLE gateways (
    name TEXT PRIMARY KEY,
    roster INTEGER NOT NULL UNIQUE,       -- place in the plan's bitmap, for ever
    first_seen REAL NOT NULL,
    last_seen REAL NOT NULL,
    present INTEGER NOT NULL,             -- 0 after the last will or a leave
    software TEXT NOT NULL,
    engines TEXT NOT NULL,                -- names, comma separated
    windows INTEGER NOT NULL,             -- training windows at its last birth
    signal_bytes INTEGER NOT NULL,        -- raw signal it holds, at 16 bits a sample
    nonce BLOB NOT NULL                   -- boot nonce of its last birth
) STRICT;
CREATE TABLE verdicts (                   -- the last answer of every gateway, kept for ever
    gateway TEXT PRIMARY KEY,
    round INTEGER NOT NULL,
    counter INTEGER NOT NULL,
    digest BLOB NOT NULL,
    verdict TEXT NOT NULL
) STRICT;
CREATE TABLE wire (                       -- socket bytes, cumulative, as one process of a gateway counted them
    gateway TEXT NOT NULL,
    nonce BLOB NOT NULL,
    sent INTEGER NOT NULL,
    received INTEGER NOT NULL,
    reported_at REAL NOT NULL,
    final INTEGER NOT NULL,               -- 1: said on leaving, nothing follows; 0: a tail may not be reported yet
    PRIMARY KEY (gateway, nonce)
) STRICT;
CREATE TABLE rounds (
    id INTEGER PRIMARY KEY,
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
    metric_source TEXT                    -- test set | held-out windows
) STRICT;
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
    owed INTEGER NOT NULL DEFAULT 0,      -- accepted, but its round closed below quorum: counts in the next
    payload BLOB,                         -- NULL once its version is committed
    PRIMARY KEY (round, gateway)
) STRICT;
CREATE TABLE versions (
    lineage INTEGER NOT NULL,
    number INTEGER NOT NULL,
    digest BLOB NOT NULL,                 -- sha256 of the integer parameters
    parent BLOB NOT NULL,                 -- digest of the version before: the chain
    round INTEGER,
    created_at REAL NOT NULL,
    level INTEGER NOT NULL,               -- how dense its delta was coded, and the updates that start from it
    delta BLOB NOT NULL,                  -- as broadcast; empty for the start of a lineage
    steps BLOB NOT NULL,                  -- the same as whole numbers, which need no contexts to be read
    PRIMARY KEY (lineage, number)
) STRICT;
CREATE TABLE catch_ups (                  -- answers to gateways that missed deltas, published once for all askers
    at REAL NOT NULL,
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
