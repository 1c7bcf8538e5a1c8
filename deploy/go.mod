module github.com/skein-fleet/skein/deploy

go 1.26.7
