// Package engine is TensorRT on this device: it drives trtexec (builds, trial
// loads, measurements), reads what trtexec prints, says in plain words why an
// engine does not load, and refuses engines whose record says that they cannot
// load before TensorRT is asked.
//
// Invariants: no plan is ever opened in this process, only by a child or in a
// container, because a bad plan often crashes its loader; a crash is a verdict
// like any other; numbers that trtexec did not print are absent, never zero.
// The packages of the agent import it.
package engine
