-- +goose Up
CREATE TABLE policies (
    tenant  TEXT NOT NULL,
    scope   INTEGER NOT NULL, -- 1 fleet, 2 site, 3 device
    subject TEXT NOT NULL,
    key     TEXT NOT NULL,
    value   TEXT NOT NULL,
    updated INTEGER NOT NULL,
    PRIMARY KEY (tenant, scope, subject, key)
) WITHOUT ROWID;

-- What a desired state says of the policy, and what its rollout or an operator
-- added to it, as JSON.
ALTER TABLE desired ADD COLUMN policy_digest BLOB NOT NULL DEFAULT x'';
ALTER TABLE desired ADD COLUMN extra TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE desired DROP COLUMN extra;
ALTER TABLE desired DROP COLUMN policy_digest;
DROP TABLE policies;
