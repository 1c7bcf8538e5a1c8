module github.com/skein-fleet/skein/telemetry

go 1.26.7

require github.com/skein-fleet/skein/proto v0.0.0-00010101000000-000000000000

require (
	github.com/google/go-cmp v0.7.0 // indirect
	pgregory.net/rapid v1.3.0 // indirect
)

replace github.com/skein-fleet/skein/proto => ../proto
