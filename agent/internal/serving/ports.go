package serving

import (
	"fmt"
	"net"
	"slices"
	"sync"
)

// Ports are where one server listens, each HOST:PORT on loopback.
type Ports struct {
	HTTP, GRPC, Metrics string
}

func (p Ports) all() []string { return []string{p.HTTP, p.GRPC, p.Metrics} }

// portBook gives ports that are free and that no server here was given.
type portBook struct {
	mu    sync.Mutex // guards given
	given []string
}

// take finds three of them. The listeners are held until all are found, so that
// they differ; between that and the server's own listening the kernel gives
// them to nobody who does not ask for them by number.
func (b *portBook) take() (Ports, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []string
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	for tries := 0; len(found) < 3; tries++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return Ports{}, fmt.Errorf("find a free port: %w", err)
		}
		held = append(held, l)
		if addr := l.Addr().String(); !slices.Contains(b.given, addr) {
			found = append(found, addr)
		}
		if tries > 100 {
			return Ports{}, fmt.Errorf("find a free port: %d were taken", tries)
		}
	}
	b.given = append(b.given, found...)
	return Ports{HTTP: found[0], GRPC: found[1], Metrics: found[2]}, nil
}

// keep notes ports of a server that runs already.
func (b *portBook) keep(p Ports) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.given = append(b.given, p.all()...)
}

func (b *portBook) giveBack(p Ports) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.given = slices.DeleteFunc(b.given, func(s string) bool { return slices.Contains(p.all(), s) })
}
