-- +goose Up
-- What devices sent of starts that ended without having been stopped; the
-- newest few of each device are kept.
CREATE TABLE crashes (
    tenant   TEXT NOT NULL,
    device   TEXT NOT NULL,
    number   INTEGER NOT NULL, -- of the device
    received INTEGER NOT NULL,
    body     BLOB NOT NULL,    -- the device's message
    PRIMARY KEY (tenant, device, number)
) WITHOUT ROWID;

-- +goose Down
DROP TABLE crashes;
