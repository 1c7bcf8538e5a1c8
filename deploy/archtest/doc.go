// Package archtest holds the architecture: its tests check who may import
// whom, who owns which big dependency, package comments and names, and the
// module files. It has no code of its own and nobody imports it.
package archtest
