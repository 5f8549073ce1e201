-- The store of one collector. Times are Unix milliseconds. JSON columns hold msgspec-encoded records of core/model.py.

-- The journal: every engine input in order. A seam of its own: append, read from an offset, bounds, trim.
CREATE TABLE journal (
    "offset"    INTEGER PRIMARY KEY,
    received_ms INTEGER NOT NULL,
    kind        TEXT    NOT NULL,        -- frame, pulse, tick, command, config
    agent       TEXT    NOT NULL,        -- '' where there is none
    spool_id    BLOB    NOT NULL,        -- frame: the spool its sequence number belongs to; else empty
    body        BLOB    NOT NULL         -- frame: the AgentMessage as received; else the Input as msgpack
);
CREATE TABLE effect_digest (             -- what the entry's effects were, so that a replay can be compared
    "offset" INTEGER PRIMARY KEY,
    digest   BLOB NOT NULL
);

-- What is durable of each agent's spool. seq <= high_water is never applied again.
CREATE TABLE spool (
    agent      TEXT NOT NULL,
    spool_id   BLOB NOT NULL,
    high_water INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    PRIMARY KEY (agent, spool_id)
) WITHOUT ROWID;

CREATE TABLE series (
    id          INTEGER PRIMARY KEY,
    agent       TEXT NOT NULL,
    device      TEXT NOT NULL,
    metric      TEXT NOT NULL,
    unit        TEXT NOT NULL,
    kind        INTEGER NOT NULL,
    labels      TEXT NOT NULL,           -- JSON [[name, value], ...]
    states      TEXT NOT NULL,           -- JSON [[number, word], ...]
    interval_ms INTEGER NOT NULL
);
CREATE INDEX series_device ON series (device, metric);

-- The series ids of each layout an agent has declared: 64-bit ids as signed integers, body: int64 ids in the layout's order.
CREATE TABLE layout (
    agent  TEXT NOT NULL,
    layout INTEGER NOT NULL,
    body   BLOB NOT NULL,
    PRIMARY KEY (agent, layout)
) WITHOUT ROWID;

-- Newest values for the pages: not truth, written every few seconds. body: int64 ids, int64 times, float64 values, one after the other.
CREATE TABLE live (
    agent   TEXT PRIMARY KEY,
    at_ms   INTEGER NOT NULL,            -- journal time of the last input from this agent
    body    BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE incident (
    id            TEXT PRIMARY KEY,
    "key"         TEXT NOT NULL,
    rule          TEXT NOT NULL,
    device        TEXT NOT NULL,
    site          TEXT NOT NULL,
    severity      TEXT NOT NULL,
    severity_rank INTEGER NOT NULL,
    state         TEXT NOT NULL,
    opened_ms     INTEGER NOT NULL,
    detected_ms   INTEGER NOT NULL,
    last_ms       INTEGER NOT NULL,
    resolved_ms   INTEGER NOT NULL,
    closed_ms     INTEGER NOT NULL,
    suppressed_by TEXT NOT NULL,
    body          TEXT NOT NULL          -- the whole record, JSON
);
CREATE UNIQUE INDEX incident_one_open ON incident ("key") WHERE state IN ('held', 'suppressed', 'open', 'acknowledged');
CREATE INDEX incident_state ON incident (state, severity_rank, opened_ms);
CREATE INDEX incident_opened ON incident (opened_ms, id);
CREATE INDEX incident_device ON incident (device, opened_ms);
CREATE INDEX incident_parent ON incident (suppressed_by) WHERE suppressed_by <> '';

CREATE TABLE timeline (
    id       INTEGER PRIMARY KEY,
    incident TEXT NOT NULL,
    "offset" INTEGER NOT NULL,           -- journal entry; -1: written by delivery
    at_ms    INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    facts    TEXT NOT NULL               -- JSON
);
CREATE INDEX timeline_incident ON timeline (incident, id);

-- The bitemporal ledger: rows are only ever superseded. Current rows of a component tile its life without hole or overlap.
CREATE TABLE "interval" (
    id         INTEGER PRIMARY KEY,
    component  TEXT NOT NULL,
    start_ms   INTEGER NOT NULL,
    end_ms     INTEGER,                  -- NULL: until further notice
    state      TEXT NOT NULL,
    cause      TEXT NOT NULL,
    revision   INTEGER NOT NULL,         -- journal offset that wrote it
    superseded INTEGER                   -- journal offset that replaced it; NULL: current
);
CREATE INDEX interval_current ON "interval" (component, start_ms) WHERE superseded IS NULL;
CREATE UNIQUE INDEX interval_tail ON "interval" (component) WHERE superseded IS NULL AND end_ms IS NULL;
CREATE INDEX interval_component ON "interval" (component, revision);

-- What is to be told, per channel, strictly in order of id per (channel, key).
CREATE TABLE outbox (
    id              INTEGER PRIMARY KEY,
    channel         TEXT NOT NULL,
    "key"           TEXT NOT NULL,       -- of the incident: its opens and closes alternate on each channel
    incident        TEXT NOT NULL,
    ordinal         INTEGER NOT NULL,
    kind            TEXT NOT NULL,       -- opened, updated, resolved
    idempotency_key TEXT NOT NULL UNIQUE,
    created_ms      INTEGER NOT NULL,
    body            TEXT NOT NULL,       -- the Notice, JSON
    state           TEXT NOT NULL DEFAULT 'due',  -- due, sent, dead
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_ms         INTEGER NOT NULL DEFAULT 0,
    delivered_ms    INTEGER NOT NULL DEFAULT 0,
    last_error      TEXT NOT NULL DEFAULT ''
);
CREATE INDEX outbox_due ON outbox (channel, id) WHERE state = 'due';
CREATE INDEX outbox_lane ON outbox (channel, "key", id) WHERE state <> 'sent';
CREATE INDEX outbox_incident ON outbox (incident);
CREATE INDEX outbox_told ON outbox (channel, incident, id, kind) WHERE kind <> 'updated';

CREATE TABLE dead_letter (
    id          INTEGER PRIMARY KEY,
    agent       TEXT NOT NULL,
    spool_id    BLOB NOT NULL,
    seq         INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    code        TEXT NOT NULL,
    detail      TEXT NOT NULL,
    body        BLOB NOT NULL
);
CREATE TABLE refused (                   -- counted, one row per agent and code
    agent   TEXT NOT NULL,
    code    TEXT NOT NULL,
    detail  TEXT NOT NULL,               -- the newest
    count   INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    PRIMARY KEY (agent, code)
) WITHOUT ROWID;
CREATE TABLE gap (
    id          INTEGER PRIMARY KEY,
    agent       TEXT NOT NULL,
    from_ms     INTEGER NOT NULL,
    to_ms       INTEGER NOT NULL,
    reason      TEXT NOT NULL,
    frames      INTEGER NOT NULL,
    received_ms INTEGER NOT NULL
);

-- Registry, rules and settings as they came into force: the newest row holds.
CREATE TABLE config (
    "offset"    INTEGER PRIMARY KEY,     -- journal entry
    version     INTEGER NOT NULL,        -- of its registry
    received_ms INTEGER NOT NULL,
    body        TEXT NOT NULL            -- the Config, JSON
);

-- Who may speak: agents by certificate, people by password or token. Secrets only as hashes.
CREATE TABLE agent (
    name        TEXT PRIMARY KEY,        -- the device id of the host it runs on
    uuid        TEXT NOT NULL UNIQUE,    -- in the certificate's URI
    hostname    TEXT NOT NULL,
    site        TEXT NOT NULL,
    machine     TEXT NOT NULL,
    serial      TEXT NOT NULL,           -- of the newest certificate, hex
    expires_ms  INTEGER NOT NULL,
    enrolled_ms INTEGER NOT NULL,
    revoked_ms  INTEGER NOT NULL DEFAULT 0,
    version     TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE TABLE enrolment_token (
    id         TEXT PRIMARY KEY,
    hash       BLOB NOT NULL UNIQUE,     -- SHA-256 of the secret
    device     TEXT NOT NULL,            -- name the host will have; '': from its hostname
    site       TEXT NOT NULL,
    uses_left  INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    revoked_ms INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE account (
    name          TEXT PRIMARY KEY,
    password_hash TEXT NOT NULL,         -- argon2id
    role          TEXT NOT NULL,         -- viewer, operator, admin
    created_ms    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE api_token (                 -- also the sessions of the pages
    id         TEXT PRIMARY KEY,
    hash       BLOB NOT NULL UNIQUE,
    account    TEXT NOT NULL,
    label      TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    revoked_ms INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE audit (
    id     INTEGER PRIMARY KEY,
    at_ms  INTEGER NOT NULL,
    actor  TEXT NOT NULL,
    action TEXT NOT NULL,
    detail TEXT NOT NULL
);
