// Package proto is the schema of everything that crosses a process boundary:
// the Connect services under skein/ with their generated code under gen/, and
// the CBOR messages of the device link in wire. It imports nothing of Skein;
// every module may import it.
package proto
