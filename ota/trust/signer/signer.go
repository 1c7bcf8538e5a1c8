// Package signer is the way from a control plane to the process that holds the
// online signing keys: four questions over a unix socket, one per connection,
// each a JSON object and its JSON answer:
//
//	{"op":"state"}                     which root it trusts, ids of its keys
//	{"op":"roots","roots":[...]}       the roots after that one
//	{"op":"publish","publish":{...}}   snapshot and timestamp for signed targets
//	{"op":"list","list":{...}}         a release within a policy that persons signed
//
// Invariants: there is no question that signs bytes of the asker's choice; what
// is not one of these is refused before it is looked at further; messages are
// bounded in size and time. cmd/skein-signer serves it and the control plane
// asks; what is signed is decided by trust.Notary.
package signer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota/trust"
)

const (
	maxMessage = 32 << 20
	patience   = 30 * time.Second // for one connection
	atOnce     = 4                // connections served together
)

// ErrAddress is returned for an address that is not unix:///path.
var ErrAddress = errors.New("want unix:///path/to/socket")

type request struct {
	Op      string                `json:"op"`
	Roots   [][]byte              `json:"roots,omitempty"`
	Publish *trust.PublishRequest `json:"publish,omitempty"`
	List    *trust.ListRequest    `json:"list,omitempty"`
}

type response struct {
	Error     string             `json:"error,omitempty"`
	Refused   bool               `json:"refused,omitempty"`
	State     *trust.OnlineState `json:"state,omitempty"`
	Published *trust.Published   `json:"published,omitempty"`
}

// Path reads the address of a signer.
func Path(address string) (string, error) {
	path, ok := strings.CutPrefix(address, "unix://")
	if !ok || !strings.HasPrefix(path, "/") {
		return "", fmt.Errorf("signer address %q: %w", address, ErrAddress)
	}
	return path, nil
}

// Listen opens the socket at path for its owner and group. A socket that a
// process left behind is replaced, one that answers is not.
func Listen(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("listen on %s: something else is there", path)
		}
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			return nil, errors.Join(fmt.Errorf("listen on %s: a signer is running there", path), c.Close())
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), ln.Close())
	}
	return ln, nil
}

// Serve answers on ln until ctx ends; then it waits for the answers under way.
func Serve(ctx context.Context, ln net.Listener, to trust.Online) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() }) // ends Accept
	defer stop()
	slots := make(chan struct{}, atOnce)
	for {
		c, err := ln.Accept()
		if err != nil {
			for range atOnce {
				slots <- struct{}{}
			}
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept: %w", err)
		}
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			serve(ctx, c, to)
		}()
	}
}

func serve(ctx context.Context, c net.Conn, to trust.Online) {
	defer c.Close()
	if c.SetDeadline(time.Now().Add(patience)) != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) }) // no question is waited for
	defer stop()
	r := answer(ctx, c, to)
	if json.NewEncoder(c).Encode(r) != nil {
		return // the asker is gone
	}
	// What is left of a question is read, or closing would take the answer back.
	if u, ok := c.(*net.UnixConn); ok && u.CloseWrite() == nil && c.SetDeadline(time.Now().Add(time.Second)) == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(c, maxMessage))
	}
}

func answer(ctx context.Context, c io.Reader, to trust.Online) response {
	req, err := read(c)
	if err != nil {
		return response{Error: err.Error(), Refused: true}
	}
	var out response
	switch req.Op {
	case "state":
		var s trust.OnlineState
		s, err = to.State(ctx)
		out.State = &s
	case "roots":
		err = to.Roots(ctx, req.Roots)
	case "publish":
		var p trust.Published
		p, err = to.Publish(ctx, *req.Publish)
		out.Published = &p
	case "list":
		var p trust.Published
		p, err = to.List(ctx, *req.List)
		out.Published = &p
	}
	if err != nil {
		return response{Error: err.Error(), Refused: errors.Is(err, trust.ErrRefused)}
	}
	return out
}

// read takes one question and nothing else.
func read(c io.Reader) (request, error) {
	var req request
	dec := json.NewDecoder(io.LimitReader(c, maxMessage))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return req, fmt.Errorf("read question: %w", err)
	}
	only := request{Op: req.Op}
	switch req.Op {
	case "state":
	case "roots":
		only.Roots = req.Roots
	case "publish":
		only.Publish = req.Publish
	case "list":
		only.List = req.List
	default:
		return req, fmt.Errorf("no such question %.40q", req.Op)
	}
	if req.Op == "publish" && req.Publish == nil || req.Op == "list" && req.List == nil {
		return req, fmt.Errorf("question %s without its content", req.Op)
	}
	if only.Publish != req.Publish || only.List != req.List || len(only.Roots) != len(req.Roots) {
		return req, fmt.Errorf("question %s with the content of another", req.Op)
	}
	return req, nil
}

// Client asks the signer behind a socket. It implements trust.Online.
type Client struct{ path string }

// NewClient returns a client of the signer at unix:///path. It opens nothing.
func NewClient(address string) (*Client, error) {
	path, err := Path(address)
	if err != nil {
		return nil, err
	}
	return &Client{path}, nil
}

func (c *Client) ask(ctx context.Context, req request) (out response, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return out, fmt.Errorf("%w: reach it at %s: %w", trust.ErrSigner, c.path, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	b, err := json.Marshal(req)
	if err != nil {
		return out, err
	}
	if len(b) > maxMessage {
		return out, fmt.Errorf("question of %d bytes for skein-signer, at most %d", len(b), maxMessage)
	}
	if _, err := io.Copy(conn, bytes.NewReader(b)); err != nil {
		return out, fmt.Errorf("%w: %w", trust.ErrSigner, err)
	}
	if err := json.NewDecoder(io.LimitReader(conn, maxMessage)).Decode(&out); err != nil {
		return out, fmt.Errorf("%w: read its answer: %w", trust.ErrSigner, err)
	}
	switch {
	case out.Error != "" && out.Refused:
		return out, fmt.Errorf("skein-signer: %w: %s", trust.ErrRefused, strings.TrimPrefix(out.Error, trust.ErrRefused.Error()+": "))
	case out.Error != "":
		return out, fmt.Errorf("skein-signer: %s", out.Error)
	}
	return out, nil
}

// State implements trust.Online.
func (c *Client) State(ctx context.Context) (trust.OnlineState, error) {
	r, err := c.ask(ctx, request{Op: "state"})
	if err != nil || r.State == nil {
		return trust.OnlineState{}, errors.Join(err, empty(r.State == nil && err == nil))
	}
	return *r.State, nil
}

// Roots implements trust.Online.
func (c *Client) Roots(ctx context.Context, roots [][]byte) error {
	_, err := c.ask(ctx, request{Op: "roots", Roots: roots})
	return err
}

// Publish implements trust.Online.
func (c *Client) Publish(ctx context.Context, p trust.PublishRequest) (trust.Published, error) {
	return c.published(ctx, request{Op: "publish", Publish: &p})
}

// List implements trust.Online.
func (c *Client) List(ctx context.Context, l trust.ListRequest) (trust.Published, error) {
	return c.published(ctx, request{Op: "list", List: &l})
}

func (c *Client) published(ctx context.Context, req request) (trust.Published, error) {
	r, err := c.ask(ctx, req)
	if err != nil || r.Published == nil {
		return trust.Published{}, errors.Join(err, empty(r.Published == nil && err == nil))
	}
	return *r.Published, nil
}

func empty(is bool) error {
	if is {
		return errors.New("skein-signer answered without content")
	}
	return nil
}
