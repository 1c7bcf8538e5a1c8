package line

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/skein-fleet/skein/sim/fault/shaper"
)

// echo answers each line with itself.
func echo(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func open(t *testing.T, l *Line, target string) (net.Conn, *bufio.Reader, int) {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", l.Port()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	return c, in, resp.StatusCode
}

func TestLine(t *testing.T) {
	port := echo(t)
	l, err := New("127.0.0.1:0", Options{Hosts: map[string]string{"plane": "127.0.0.1"}, Profile: shaper.Profile{}, HTTPS: port})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	say := func(c net.Conn, in *bufio.Reader) error {
		if _, err := io.WriteString(c, "hello\n"); err != nil {
			return err
		}
		text, err := in.ReadString('\n')
		if err == nil && text != "hello\n" {
			err = fmt.Errorf("it said %q", text)
		}
		return err
	}
	if _, _, status := open(t, l, "elsewhere:"+port); status != http.StatusForbidden {
		t.Errorf("a name that is not in the table: %d", status)
	}
	c, in, status := open(t, l, "plane:"+port)
	if err := say(c, in); status != http.StatusOK || err != nil {
		t.Fatalf("%d %v", status, err)
	}
	l.Cut()
	if err := say(c, in); err == nil {
		t.Error("a cut line answers")
	}
	if _, _, status := open(t, l, "plane:"+port); status != http.StatusBadGateway {
		t.Errorf("a connection over a cut line: %d", status)
	}
	l.Restore()
	if c, in, _ = open(t, l, "plane:"+port); say(c, in) != nil {
		t.Error("nothing passes after the cut")
	}
	l.Block(true)
	if err := say(c, in); err == nil {
		t.Error("HTTPS passes while it is blocked")
	}
	if _, _, status := open(t, l, "plane:"+port); status != http.StatusForbidden {
		t.Errorf("a connection to the blocked port: %d", status)
	}
	l.Block(false)
	if c, in, _ = open(t, l, "plane:"+port); say(c, in) != nil {
		t.Error("nothing passes after the block")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
