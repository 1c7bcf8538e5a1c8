-- +goose Up
CREATE TABLE recipes (
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    digest     TEXT NOT NULL, -- of the canonical recipe, a blob
    created    INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;

-- A build of one engine: queued, leased to a device, then done, failed or
-- cancelled. At most one of a key is open.
CREATE TABLE builds (
    tenant        TEXT NOT NULL,
    id            TEXT NOT NULL,
    key           TEXT NOT NULL, -- of the engine
    model         TEXT NOT NULL,
    model_version INTEGER NOT NULL,
    onnx          TEXT NOT NULL, -- digest
    golden        TEXT NOT NULL, -- digest
    recipe        TEXT NOT NULL, -- digest of the canonical recipe, a blob
    target        TEXT NOT NULL,
    priority      INTEGER NOT NULL,
    state         TEXT NOT NULL,
    attempt       INTEGER NOT NULL, -- number of the last lease
    device        TEXT NOT NULL,    -- of the last lease
    leased        INTEGER NOT NULL,
    not_before    INTEGER NOT NULL,
    tried         TEXT NOT NULL, -- JSON array of attempts that ended
    message       TEXT NOT NULL,
    log           TEXT NOT NULL, -- digest of the log of the last attempt, or empty
    created       INTEGER NOT NULL,
    created_by    TEXT NOT NULL,
    finished      INTEGER NOT NULL,
    PRIMARY KEY (tenant, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX builds_open ON builds (tenant, key) WHERE state IN ('queued', 'leased');
CREATE INDEX builds_key ON builds (tenant, key, created);

-- Engines under their key. scope is the one device that may load it, empty for
-- all of its target.
CREATE TABLE engines (
    tenant        TEXT NOT NULL,
    key           TEXT NOT NULL,
    scope         TEXT NOT NULL,
    model         TEXT NOT NULL,
    model_version INTEGER NOT NULL,
    recipe        TEXT NOT NULL, -- digest
    target        TEXT NOT NULL,
    plan          TEXT NOT NULL, -- digest
    record        TEXT NOT NULL, -- digest of the record, signed by its device
    builder_key   BLOB NOT NULL, -- SPKI of that device
    seal          TEXT NOT NULL, -- digest of the countersigned record
    provenance    TEXT NOT NULL, -- digest of the signed statement
    timing        TEXT NOT NULL, -- digest of the timing cache, or empty
    timing_size   INTEGER NOT NULL,
    timing_class  TEXT NOT NULL, -- of devices that the timing cache is good for
    log           TEXT NOT NULL, -- digest
    build         TEXT NOT NULL, -- id
    created       INTEGER NOT NULL,
    PRIMARY KEY (tenant, key, scope)
) WITHOUT ROWID;
CREATE INDEX engines_timing ON engines (tenant, timing_class, created);

-- +goose Down
DROP TABLE engines;
DROP TABLE builds;
DROP TABLE recipes;
