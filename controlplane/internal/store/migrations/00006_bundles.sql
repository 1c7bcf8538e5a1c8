-- +goose Up
-- What was pushed to the registry, and what skein attached to its releases.
CREATE TABLE registry_manifests (
    tenant        TEXT NOT NULL,
    repo          TEXT NOT NULL,
    digest        TEXT NOT NULL,
    media_type    TEXT NOT NULL,
    artifact_type TEXT NOT NULL,
    subject       TEXT NOT NULL, -- digest that it refers to, or empty
    size          INTEGER NOT NULL,
    annotations   TEXT NOT NULL, -- JSON object
    own           INTEGER NOT NULL, -- made by skein: nobody deletes it
    created       INTEGER NOT NULL,
    PRIMARY KEY (tenant, repo, digest)
) WITHOUT ROWID;
CREATE INDEX registry_referrers ON registry_manifests (tenant, repo, subject) WHERE subject <> '';

CREATE TABLE registry_tags (
    tenant TEXT NOT NULL,
    repo   TEXT NOT NULL,
    tag    TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (tenant, repo, tag)
) WITHOUT ROWID;

-- Which pushed repository shows which blob.
CREATE TABLE registry_blobs (
    tenant TEXT NOT NULL,
    repo   TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (tenant, repo, digest)
) WITHOUT ROWID;

-- Other control planes whose bundles are taken here, by the TUF root that a
-- person named.
CREATE TABLE publishers (
    tenant   TEXT NOT NULL,
    name     TEXT NOT NULL,
    root     BLOB NOT NULL, -- as it was given
    added    INTEGER NOT NULL,
    added_by TEXT NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;

-- Whose bundle a release came in; empty for those made here.
ALTER TABLE releases ADD COLUMN publisher TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE releases DROP COLUMN publisher;
DROP TABLE publishers;
DROP TABLE registry_blobs;
DROP TABLE registry_tags;
DROP TABLE registry_manifests;
