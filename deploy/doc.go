// Package deploy holds what surrounds the code: service files, tool modules,
// scripts and the architecture tests. Nothing imports it.
package deploy
