-- +goose Up
CREATE TABLE models (
    tenant      TEXT NOT NULL,
    name        TEXT NOT NULL,
    version     INTEGER NOT NULL,
    onnx        TEXT NOT NULL, -- digest
    onnx_size   INTEGER NOT NULL,
    golden      TEXT NOT NULL, -- digest
    golden_size INTEGER NOT NULL,
    description TEXT NOT NULL,
    metadata    TEXT NOT NULL, -- JSON object
    created     INTEGER NOT NULL,
    created_by  TEXT NOT NULL,
    PRIMARY KEY (tenant, name, version)
) WITHOUT ROWID;
CREATE UNIQUE INDEX models_content ON models (tenant, name, onnx, golden);

-- A release is pending between the moment its counter is taken and the moment
-- it is listed in the TUF targets.
CREATE TABLE releases (
    tenant        TEXT NOT NULL,
    digest        TEXT NOT NULL, -- of the OCI index
    name          TEXT NOT NULL,
    version       TEXT NOT NULL,
    counter       INTEGER NOT NULL,
    length        INTEGER NOT NULL, -- of the OCI index
    model         TEXT NOT NULL,
    model_version INTEGER NOT NULL,
    targets       TEXT NOT NULL, -- JSON array
    parameters    TEXT NOT NULL, -- JSON array
    bytes         INTEGER NOT NULL,
    soak          INTEGER NOT NULL, -- milliseconds
    ready         INTEGER NOT NULL,
    created       INTEGER NOT NULL,
    created_by    TEXT NOT NULL,
    PRIMARY KEY (tenant, digest)
) WITHOUT ROWID;
CREATE UNIQUE INDEX releases_version ON releases (tenant, name, version);
CREATE UNIQUE INDEX releases_counter ON releases (tenant, name, counter);

-- The state of a rollout without its devices, and its devices apart, so that a
-- change of one device writes one row.
CREATE TABLE rollouts (
    tenant     TEXT NOT NULL,
    id         TEXT NOT NULL,
    name       TEXT NOT NULL,
    spec       TEXT NOT NULL, -- JSON, format in ota/rollout/SPEC.md
    release    TEXT NOT NULL, -- digest
    phase      TEXT NOT NULL,
    final      INTEGER NOT NULL,
    state      TEXT NOT NULL, -- JSON
    members    TEXT NOT NULL, -- JSON, devices of each wave in the order of offers
    summary    TEXT NOT NULL, -- JSON, for lists
    created    INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (tenant, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX rollouts_name ON rollouts (tenant, name);
CREATE INDEX rollouts_open ON rollouts (final, tenant);

CREATE TABLE rollout_devices (
    tenant  TEXT NOT NULL,
    rollout TEXT NOT NULL,
    device  TEXT NOT NULL,
    exec    TEXT NOT NULL, -- JSON
    PRIMARY KEY (tenant, rollout, device)
) WITHOUT ROWID;

CREATE TABLE rollout_decisions (
    tenant   TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    rollout  TEXT NOT NULL,
    time     INTEGER NOT NULL,
    actor    TEXT NOT NULL,
    kind     TEXT NOT NULL,
    device   TEXT NOT NULL,
    body     TEXT NOT NULL, -- JSON of the decision
    sent     INTEGER NOT NULL, -- 0 waits to be carried out, 1 carried out, 2 nothing to send, 3 could not be
    error    TEXT NOT NULL,
    PRIMARY KEY (tenant, sequence)
) WITHOUT ROWID;
CREATE INDEX rollout_decisions_rollout ON rollout_decisions (tenant, rollout, sequence);
CREATE INDEX rollout_decisions_waiting ON rollout_decisions (tenant, sequence) WHERE sent = 0;

-- +goose Down
DROP TABLE rollout_decisions;
DROP TABLE rollout_devices;
DROP TABLE rollouts;
DROP TABLE releases;
DROP TABLE models;
