package enroll

import (
	"crypto/tls"
	"net"

	"github.com/skein-fleet/skein/agent/internal/enroll/enrolltest"
)

// tlsListener serves the server's certificate on another address.
func tlsListener(l net.Listener, s *enrolltest.Server) net.Listener {
	return tls.NewListener(l, s.TLS)
}
