//go:build !linux

package engine

import "os/exec"

func ownGroup(*exec.Cmd) {}

func signalOf(*exec.ExitError) string { return "" }
