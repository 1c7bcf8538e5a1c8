// Package e2e holds the end-to-end tests of hostile inputs: control plane,
// agents and operator as their façades offer them, over real sockets, with a
// raw MQTT client for what no honest device does. Each test asserts that the
// attempt is a clear reported condition, event or audit entry, that nothing is
// lost and inference goes on, and that the next honest operation works.
// Nothing imports it.
package e2e
