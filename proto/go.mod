module github.com/skein-fleet/skein/proto

go 1.26.0
