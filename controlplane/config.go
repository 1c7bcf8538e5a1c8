package controlplane

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"time"

	online "github.com/skein-fleet/skein/ota/trust/signer"
)

// Config of a Server. The zero value of a field means the default that
// DefaultConfig gives, except for addresses: an empty DebugAddr switches the
// debug port off.
type Config struct {
	DataDir    string `json:"data_dir"`
	HTTPAddr   string `json:"http_addr"`   // people: API and dashboard
	DeviceAddr string `json:"device_addr"` // devices: enrolment, blobs, trust, MQTT over WebSocket; TLS
	MQTTAddr   string `json:"mqtt_addr"`   // devices: MQTT over TLS
	DebugAddr  string `json:"debug_addr"`  // pprof, metrics, health
	// Domain is the trust domain in device certificates. It is fixed by the
	// first start.
	Domain string `json:"domain"`
	// PublicHost is the name or address under which devices reach this server;
	// empty: the one they used to enrol.
	PublicHost string `json:"public_host"`
	// Names are more DNS names and IP addresses for the server certificate.
	// localhost and the addresses of this host are always in it.
	Names []string `json:"names"`
	// Signer is where the online signing keys are, unix:///path of skein-signer;
	// empty: in the data folder, as in development.
	Signer string `json:"signer"`
	// Restored says that the data folder came back from a backup: the epoch of
	// all generations is raised once, at this start.
	Restored bool `json:"-"`
	// Resend is the pause between two sendings of the same desired state to a
	// device that does not take it; 0 means 30 s.
	Resend time.Duration `json:"-"`
	// Now is the server's clock, for tests and simulations; nil is time.Now.
	Now func() time.Time `json:"-"`
	// Version is shown to people.
	Version string `json:"-"`
}

// DefaultConfig is a server for one host.
func DefaultConfig() Config {
	return Config{DataDir: "skein-data", HTTPAddr: "127.0.0.1:8080", DeviceAddr: ":8443", MQTTAddr: ":8883", DebugAddr: "127.0.0.1:6060", Domain: "skein.local"}
}

// LoadConfig reads a JSON file over c; unknown fields are errors.
func LoadConfig(path string, c *Config) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		return fmt.Errorf("read configuration %s: %w", path, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("read configuration %s: more than one JSON value", path)
	}
	return nil
}

var domainRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// Validate says what is wrong, all at once.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.DataDir == "" {
		bad("data_dir is empty: name a folder for the data")
	}
	for name, addr := range map[string]string{"http_addr": c.HTTPAddr, "device_addr": c.DeviceAddr, "mqtt_addr": c.MQTTAddr, "debug_addr": c.DebugAddr} {
		if addr == "" && name == "debug_addr" {
			continue
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			bad("%s %q: want host:port, as in 127.0.0.1:8080, [::1]:8080 or :8080", name, addr)
		}
	}
	if !domainRE.MatchString(c.Domain) {
		bad("domain %q: want lower-case letters, digits, dots and dashes", c.Domain)
	}
	if c.PublicHost != "" && net.ParseIP(c.PublicHost) == nil && !domainRE.MatchString(c.PublicHost) {
		bad("public_host %q: want a DNS name or IP address without port", c.PublicHost)
	}
	if c.Signer != "" {
		if _, err := online.Path(c.Signer); err != nil {
			bad("signer: %w", err)
		}
	}
	return errors.Join(errs...)
}

// serverNames are the names in the server certificate.
func (c *Config) serverNames() []string {
	names := append([]string{"localhost", "127.0.0.1", "::1"}, c.Names...)
	if c.PublicHost != "" {
		names = append(names, c.PublicHost)
	}
	if host, err := os.Hostname(); err == nil && domainRE.MatchString(host) {
		names = append(names, host)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return names
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			names = append(names, n.IP.String())
		}
	}
	return names
}
