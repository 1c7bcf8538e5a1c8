-- +goose Up
-- Times are unix milliseconds; the tenant leads every key.
CREATE TABLE settings (
    tenant TEXT NOT NULL,
    key    TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (tenant, key)
) WITHOUT ROWID;

CREATE TABLE devices (
    tenant       TEXT NOT NULL,
    id           TEXT NOT NULL,
    name         TEXT NOT NULL,
    serial       TEXT NOT NULL,
    hardware     TEXT NOT NULL,
    labels       TEXT NOT NULL, -- JSON object
    capabilities TEXT NOT NULL, -- JSON array
    target       TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('pending', 'active', 'revoked')),
    spki         BLOB NOT NULL, -- device key, DER
    spki_hash    BLOB NOT NULL,
    seal_key     BLOB NOT NULL,
    token        TEXT NOT NULL,
    enrolled     INTEGER NOT NULL,
    revoked_why  TEXT NOT NULL DEFAULT '',
    replaced_by  TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (tenant, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX devices_key ON devices (tenant, spki_hash);
CREATE UNIQUE INDEX devices_id ON devices (id);
CREATE INDEX devices_serial ON devices (tenant, serial);

CREATE TABLE certificates (
    tenant     TEXT NOT NULL,
    serial     TEXT NOT NULL, -- hex
    device     TEXT NOT NULL,
    not_before INTEGER NOT NULL,
    not_after  INTEGER NOT NULL,
    der        BLOB NOT NULL,
    PRIMARY KEY (tenant, serial)
) WITHOUT ROWID;
CREATE INDEX certificates_device ON certificates (tenant, device, not_after);

CREATE TABLE tokens (
    tenant       TEXT NOT NULL,
    id           TEXT NOT NULL,
    hash         BLOB NOT NULL,
    uses         INTEGER NOT NULL,
    used         INTEGER NOT NULL DEFAULT 0,
    expires      INTEGER NOT NULL,
    labels       TEXT NOT NULL,
    serials      TEXT NOT NULL,
    auto_approve INTEGER NOT NULL,
    revoked      INTEGER NOT NULL DEFAULT 0,
    created      INTEGER NOT NULL,
    created_by   TEXT NOT NULL,
    PRIMARY KEY (tenant, id),
    CHECK (used <= uses)
) WITHOUT ROWID;
CREATE UNIQUE INDEX tokens_hash ON tokens (hash);

CREATE TABLE credentials (
    tenant  TEXT NOT NULL,
    id      TEXT NOT NULL,
    name    TEXT NOT NULL,
    role    TEXT NOT NULL,
    hash    BLOB NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL, -- 0: never
    revoked INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX credentials_hash ON credentials (hash);

CREATE TABLE audit (
    tenant   TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    time     INTEGER NOT NULL,
    actor    TEXT NOT NULL,
    action   TEXT NOT NULL,
    subject  TEXT NOT NULL,
    decision TEXT NOT NULL,
    rule     TEXT NOT NULL,
    before   TEXT NOT NULL,
    after    TEXT NOT NULL,
    error    TEXT NOT NULL,
    PRIMARY KEY (tenant, sequence)
) WITHOUT ROWID;
CREATE INDEX audit_subject ON audit (tenant, subject, sequence);

CREATE TABLE parameters (
    tenant  TEXT NOT NULL,
    scope   INTEGER NOT NULL, -- 1 fleet, 2 site, 3 device
    subject TEXT NOT NULL,
    key     TEXT NOT NULL,
    value   BLOB NOT NULL, -- encrypted when secret
    secret  INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    PRIMARY KEY (tenant, scope, subject, key)
) WITHOUT ROWID;

CREATE TABLE desired (
    tenant        TEXT NOT NULL,
    device        TEXT NOT NULL,
    epoch         INTEGER NOT NULL,
    counter       INTEGER NOT NULL,
    release       TEXT NOT NULL, -- digest, empty: nothing
    rollback      INTEGER NOT NULL,
    rollout       TEXT NOT NULL,
    payload       BLOB NOT NULL, -- COSE_Sign1 as sent
    digest        BLOB NOT NULL, -- sha256 of the CBOR inside
    params_digest BLOB NOT NULL,
    expires       INTEGER NOT NULL,
    PRIMARY KEY (tenant, device)
) WITHOUT ROWID;
CREATE INDEX desired_release ON desired (tenant, release);

-- Reported state, written behind the twin in memory.
CREATE TABLE twins (
    tenant         TEXT NOT NULL,
    device         TEXT NOT NULL,
    last_seen      INTEGER NOT NULL,
    boot           INTEGER NOT NULL,
    agent          TEXT NOT NULL,
    clock_doubtful INTEGER NOT NULL,
    held_epoch     INTEGER NOT NULL,
    held_counter   INTEGER NOT NULL,
    held_digest    BLOB NOT NULL,
    from_future    INTEGER NOT NULL,
    report_counter INTEGER NOT NULL,
    reported       BLOB NOT NULL, -- CBOR of wire.Reported
    PRIMARY KEY (tenant, device)
) WITHOUT ROWID;

CREATE TABLE events (
    tenant   TEXT NOT NULL,
    device   TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    boot     INTEGER NOT NULL,
    counter  INTEGER NOT NULL,
    time     INTEGER NOT NULL,
    received INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    message  TEXT NOT NULL,
    release  TEXT NOT NULL,
    step     TEXT NOT NULL,
    attack   TEXT NOT NULL,
    PRIMARY KEY (tenant, device, sequence)
) WITHOUT ROWID;
-- A device's message is stored once, whatever the link repeats. Events of the
-- control plane about a device have counter 0.
CREATE UNIQUE INDEX events_message ON events (tenant, device, boot, counter) WHERE counter > 0;

-- +goose Down
DROP TABLE events;
DROP TABLE twins;
DROP TABLE desired;
DROP TABLE parameters;
DROP TABLE audit;
DROP TABLE credentials;
DROP TABLE tokens;
DROP TABLE certificates;
DROP TABLE devices;
DROP TABLE settings;
