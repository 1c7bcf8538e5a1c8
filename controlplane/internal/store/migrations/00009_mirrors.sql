-- +goose Up
ALTER TABLE models ADD COLUMN mirrors TEXT NOT NULL DEFAULT '[]'; -- JSON array of sources of the ONNX file outside Skein

-- +goose Down
ALTER TABLE models DROP COLUMN mirrors;
