package shaper

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// pair returns the device's end of a shaped pipe and the server's plain one.
func pair(l *Link) (device, server net.Conn) {
	a, b := net.Pipe()
	return l.Wrap(a), b
}

// received reads n bytes and returns them with the time it took.
func received(t *testing.T, c net.Conn, n int) ([]byte, time.Duration) {
	t.Helper()
	start := time.Now()
	buf := make([]byte, n)
	if _, err := io.ReadFull(c, buf); err != nil {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	return buf, time.Since(start)
}

func send(t *testing.T, c net.Conn, p []byte) {
	t.Helper()
	if n, err := c.Write(p); err != nil || n != len(p) {
		t.Fatalf("wrote %d of %d: %v", n, len(p), err)
	}
}

func TestLatencyAndBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Profile{Latency: 100 * time.Millisecond, Bandwidth: 10_000}, 1)
		device, server := pair(l)
		defer server.Close()
		defer device.Close()
		text := bytes.Repeat([]byte("skein"), 1000)
		start := time.Now()
		send(t, device, text)
		if d := time.Since(start); d != 0 {
			t.Errorf("writing into an empty line took %v", d)
		}
		got, d := received(t, server, len(text))
		if want := 600 * time.Millisecond; d != want || !bytes.Equal(got, text) {
			t.Errorf("5,000 bytes at 10,000 B/s and 100 ms took %v, want %v", d, want)
		}
		go server.Write(text)
		got, d = received(t, device, len(text))
		if want := 600 * time.Millisecond; d != want || !bytes.Equal(got, text) {
			t.Errorf("down took %v, want %v", d, want)
		}
		if l.Sent() != 5000 || l.Received() != 5000 {
			t.Errorf("counted %d up, %d down", l.Sent(), l.Received())
		}
	})
}

func TestFullLineHoldsWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Profile{Bandwidth: 64 << 10}, 1)
		device, server := pair(l)
		defer l.Cut()
		defer server.Close()
		go io.Copy(io.Discard, server)
		start := time.Now()
		send(t, device, make([]byte, 3*buffered))
		if d := time.Since(start); d < 1900*time.Millisecond || d > 2100*time.Millisecond {
			t.Errorf("the third second of bytes was taken after %v", d)
		}
		if err := device.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := device.Write(make([]byte, 3*buffered)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write beyond its deadline: %v", err)
		}
	})
}

func TestLossStallsAndKeepsOrder(t *testing.T) {
	delays := func(seed uint64) (out []time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			l := New(Profile{Latency: 10 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.3}, seed)
			device, server := pair(l)
			defer server.Close()
			defer device.Close()
			for i := range 50 {
				send(t, device, []byte{byte(i)})
				b, d := received(t, server, 1)
				if b[0] != byte(i) {
					t.Fatalf("byte %d came as %d", i, b[0])
				}
				out = append(out, d)
			}
			stalled := int64(0)
			for _, d := range out {
				if d >= stallOnce {
					stalled++
				}
			}
			if stalled < 5 || stalled > l.Stalls() {
				t.Errorf("%d of 50 bytes were late, %d stalls", stalled, l.Stalls())
			}
		})
		return out
	}
	if !slices.Equal(delays(1), delays(1)) {
		t.Error("one seed gives two runs")
	}
	if slices.Equal(delays(1), delays(2)) {
		t.Error("two seeds give one run")
	}
}

func TestHoleLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Profile{}, 1)
		device, server := pair(l)
		defer server.Close()
		defer device.Close()
		l.Hole()
		send(t, device, []byte("up"))
		go server.Write([]byte("down"))
		device.SetReadDeadline(time.Now().Add(time.Minute))
		if n, err := device.Read(make([]byte, 9)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %d through a hole: %v", n, err)
		}
		device.SetReadDeadline(time.Time{})
		dialled := make(chan error, 1)
		dial := l.Dial(func(context.Context, string, string) (net.Conn, error) {
			a, b := net.Pipe()
			b.Close()
			return a, nil
		})
		go func() {
			c, err := dial(t.Context(), "tcp", "x")
			if err == nil {
				c.Close()
			}
			dialled <- err
		}()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := dial(ctx, "tcp", "x"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial through a hole: %v", err)
		}
		time.AfterFunc(time.Hour, l.Restore)
		got, d := received(t, server, 2)
		if string(got) != "up" || d != time.Hour {
			t.Errorf("%q after %v", got, d)
		}
		if got, _ := received(t, device, 4); string(got) != "down" {
			t.Errorf("got %q", got)
		}
		if err := <-dialled; err != nil {
			t.Errorf("dial after the hole: %v", err)
		}
	})
}

func TestCutBreaksAndRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Profile{Latency: time.Second}, 1)
		device, server := pair(l)
		dial := l.Dial(func(context.Context, string, string) (net.Conn, error) {
			a, b := net.Pipe()
			go io.Copy(b, b)
			return a, nil
		})
		failed := make(chan error, 1)
		go func() {
			_, err := device.Read(make([]byte, 1))
			failed <- err
		}()
		synctest.Wait()
		send(t, device, []byte("lost"))
		l.Cut()
		if err := <-failed; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read on a cut line: %v", err)
		}
		if _, err := device.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("write on a cut line: %v", err)
		}
		if n, err := server.Read(make([]byte, 9)); err != io.EOF {
			t.Errorf("the server read %d bytes, %v", n, err)
		}
		if _, err := dial(t.Context(), "tcp", "x"); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("dial on a cut line: %v", err)
		}
		l.Restore()
		start := time.Now()
		c, err := dial(t.Context(), "tcp", "x")
		if err != nil || time.Since(start) != 2*time.Second {
			t.Fatalf("dial after the cut took %v: %v", time.Since(start), err)
		}
		send(t, c, []byte("hello"))
		got, d := received(t, c, 5)
		if string(got) != "hello" || d != 2*time.Second {
			t.Errorf("echo %q after %v", got, d)
		}
		c.Close()
		// The echo goroutine ends when its pipe is closed, a linger later at most.
	})
}

func TestCloseStillDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Profile{Latency: 300 * time.Millisecond}, 1)
		device, server := pair(l)
		send(t, device, []byte("bye"))
		device.Close()
		if _, err := device.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after Close: %v", err)
		}
		all, err := io.ReadAll(server)
		if string(all) != "bye" || err != nil {
			t.Errorf("%q, %v", all, err)
		}
		// A peer that does not read cannot keep it for ever.
		device, server = pair(l)
		send(t, device, []byte("bye"))
		start := time.Now()
		device.Close()
		synctest.Wait()
		<-time.After(10 * time.Second) // of the bubble
		if n, err := server.Read(make([]byte, 4)); err != io.EOF {
			t.Errorf("after %v still %d bytes, %v", time.Since(start), n, err)
		}
	})
}

func TestCorruptFlipsSomeBits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Profile{Corrupt: 0.5}, 3)
		device, server := pair(l)
		defer server.Close()
		defer device.Close()
		zeros := make([]byte, 60<<10)
		send(t, device, zeros)
		got, _ := received(t, server, len(zeros))
		bad := 0
		for _, b := range got {
			if b != 0 {
				bad++
			}
		}
		if bad < 10 || bad > 50 {
			t.Errorf("%d of 60 kilobytes damaged, want about 30", bad)
		}
	})
}

func TestDeadlinesCanBeMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		device, server := pair(New(Profile{}, 1))
		defer server.Close()
		defer device.Close()
		start := time.Now()
		device.SetDeadline(start.Add(time.Second))
		time.AfterFunc(500*time.Millisecond, func() { device.SetDeadline(start.Add(3 * time.Second)) })
		_, err := device.Read(make([]byte, 1))
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() || time.Since(start) != 3*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if _, err := device.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a passed deadline does not last: %v", err)
		}
		device.SetReadDeadline(time.Time{})
		go server.Write([]byte("x"))
		received(t, device, 1)
	})
}
