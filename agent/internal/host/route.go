package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// DefaultInterface names the network interface of the default route with the
// least metric, of IPv4 and else of IPv6; empty when there is none.
func (m *Machine) DefaultInterface() (string, error) {
	raw, err := os.ReadFile(m.path("proc/net/route"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read routes: %w", err)
	}
	if name := defaultV4(string(raw)); name != "" {
		return name, nil
	}
	raw, err = os.ReadFile(m.path("proc/net/ipv6_route"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read routes: %w", err)
	}
	return defaultV6(string(raw)), nil
}

const (
	routeUp     = 0x1
	routeReject = 0x200
)

// defaultV4 reads /proc/net/route: Iface Destination Gateway Flags RefCnt Use
// Metric Mask ...
func defaultV4(text string) (name string) {
	best := uint64(0)
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 32)
		metric, err2 := strconv.ParseUint(f[6], 10, 32)
		if err != nil || err2 != nil || flags&routeUp == 0 || flags&routeReject != 0 {
			continue
		}
		if name == "" || metric < best {
			name, best = f[0], metric
		}
	}
	return name
}

// defaultV6 reads /proc/net/ipv6_route: destination, its prefix length, source,
// its prefix length, gateway, metric, references, use, flags, interface; all
// numbers are hexadecimal.
func defaultV6(text string) (name string) {
	best := uint64(0)
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 10 || strings.Trim(f[0], "0") != "" || f[1] != "00" {
			continue
		}
		metric, err := strconv.ParseUint(f[5], 16, 32)
		flags, err2 := strconv.ParseUint(f[8], 16, 32)
		if err != nil || err2 != nil || flags&routeUp == 0 || flags&routeReject != 0 {
			continue // the kernel's own reject route is one of these
		}
		if name == "" || metric < best {
			name, best = f[9], metric
		}
	}
	return name
}
