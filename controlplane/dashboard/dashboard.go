// Package dashboard holds the built web dashboard as embedded files. The
// sources beside it are TypeScript; `make dashboard` builds them into dist/app.
// Only package internal/web may import it.
package dashboard

import "embed"

// Dist is the folder dist: dist/app after a build, and always dist/index.html,
// a page that says how to build.
//
//go:embed all:dist
var Dist embed.FS
