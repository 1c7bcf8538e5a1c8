module github.com/skein-fleet/skein/agent

go 1.26.0

require (
	github.com/skein-fleet/skein/proto v0.0.0-00010101000000-000000000000
	github.com/skein-fleet/skein/telemetry v0.0.0-00010101000000-000000000000
	github.com/skein-fleet/skein/ota v0.0.0-00010101000000-000000000000
)

replace (
	github.com/skein-fleet/skein/proto => ../proto
	github.com/skein-fleet/skein/telemetry => ../telemetry
	github.com/skein-fleet/skein/ota => ../ota
)
