package broker

import (
	"crypto/tls"
	"net"
	"net/http"

	"github.com/gorilla/websocket"

	"github.com/skein-fleet/skein/proto/wire"
)

// ServeWebSocket serves MQTT over WebSocket to devices that reach nothing but
// the HTTPS port. The request came over TLS with a client certificate that was
// verified.
func (b *Broker) ServeWebSocket(w http.ResponseWriter, r *http.Request) {
	if r.TLS == nil {
		http.Error(w, "MQTT over WebSocket needs TLS with a device certificate", http.StatusForbidden)
		return
	}
	id, err := b.cfg.Identify(*r.TLS)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	up := websocket.Upgrader{
		HandshakeTimeout: b.cfg.FirstRead,
		ReadBufferSize:   512, WriteBufferSize: 512,
		Subprotocols: []string{"mqtt"},
		// Identity is the certificate, which no page of another origin can use.
		CheckOrigin: func(*http.Request) bool { return true },
	}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		b.cfg.Logger.Info("websocket refused", "device", id.Device, "error", err)
		return
	}
	ws.SetReadLimit(wire.MaxMessage + 4096)
	nc := ws.NetConn()
	b.mu.Lock()
	closed := b.closed
	if !closed {
		b.wg.Add(1)
	}
	b.mu.Unlock()
	if closed {
		_ = nc.Close()
		return
	}
	defer b.wg.Done()
	b.serve(newConn(&stream{Conn: nc, m: ws, binary: websocket.BinaryMessage}, rawOf(nc), id, b.cfg.WriteTimeout))
}

// rawOf is the connection below TLS.
func rawOf(c net.Conn) net.Conn {
	if t, ok := c.(*tls.Conn); ok {
		return t.NetConn()
	}
	return c
}
