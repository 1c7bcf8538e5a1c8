package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/skein-fleet/skein/controlplane/internal/imagefile/imagetest"
)

// writeImage writes a container image: FILE [key=value...], with platforms, user,
// content, fault and as=layout, save or folder.
func writeImage(ts *testscript.TestScript, _ bool, args []string) {
	im := imagetest.Image{Platforms: []string{"linux/arm64"}, Command: []string{"/server"}, Content: args[0]}
	as := "layout"
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "platforms":
			im.Platforms = strings.Split(value, ",")
		case "user":
			im.User = value
		case "content":
			im.Content = value
		case "fault":
			im.Fault = value
		case "command":
			im.Command = strings.Fields(value)
		case "as":
			as = value
		default:
			ts.Fatalf("image: unknown %s", key)
		}
	}
	name := ts.MkAbs(args[0])
	switch as {
	case "save":
		ts.Check(os.WriteFile(name, im.Saved(), 0o600))
	case "folder":
		files, _ := im.Layout()
		for entry, b := range files {
			ts.Check(os.MkdirAll(filepath.Dir(filepath.Join(name, entry)), 0o755))
			ts.Check(os.WriteFile(filepath.Join(name, entry), b, 0o600))
		}
	default:
		ts.Check(os.WriteFile(name, im.Archive(), 0o600))
	}
}
