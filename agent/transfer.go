package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/skein-fleet/skein/agent/internal/child"
	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/stream"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// Names of the ways to blobs, as reports say them.
const (
	byHTTPS = "https"
	byLink  = "mqtt"
	byChild = "child"
)

// Fetcher says how skein-fetch is started.
type Fetcher = child.Options

// connectTransfer makes the ways to blobs and trust metadata: HTTPS first, and
// over the link where that does not get through. Options that name their own
// are the only way.
func (a *Agent) connectTransfer() {
	a.overLink = stream.New(stream.Config{Publish: a.publish, NextID: a.ids.next})
	a.ways = []fetch.Named{{Name: byHTTPS, Source: a.opts.Blobs}}
	if a.opts.Blobs == nil {
		a.ways = []fetch.Named{
			{Name: byHTTPS, Source: fetch.HTTP(a.http, a.opts.Identity.BlobURL)},
			{Name: byLink, Source: a.overLink},
		}
	}
	a.mirrors = child.New(a.opts.Fetcher)
	if a.opts.Fetcher.Binary != "" { // a release names mirrors so that they are asked first
		a.ways = slices.Insert(a.ways, 0, fetch.Named{Name: byChild, Source: a.mirrors})
	}
	for i, w := range a.ways { // these go through the default route
		a.ways[i].Source = a.budget.Meter(w.Source)
	}
	a.connectPeers()
	a.chain = fetch.NewChain(time.Now, a.waysNow)
	a.chain.Told = a.noteLie
	if a.opts.Metadata == nil {
		a.opts.Metadata = trust.FirstOf(a.httpsMetadata(fetch.HTTPMetadata(a.http, a.opts.Identity.BlobURL)), a.overLink.Metadata)
	}
}

// noteLie tells that a way gave wrong bytes: others are asked from now on, so
// the update may go well all the same.
func (a *Agent) noteLie(way string, d ota.Digest) {
	a.log.Warn("wrong bytes", "way", way, "blob", d.Short())
	a.board.Event(wire.Event{ID: a.ids.next(), Kind: "refused", Attack: trust.ClassWrongHash, Message: fmt.Sprintf("%s gave wrong bytes of %s and is avoided", way, d.Short())})
}

// waysNow are the ways to blobs in the order of cost: a bundle, the siblings of
// this site, and those that go through the default route.
func (a *Agent) waysNow() []fetch.Named {
	return a.stick.ways(slices.Concat(a.peerWays(), a.ways))
}

// freeWays reports whether there are ways that no allowance counts.
func (a *Agent) freeWays() bool {
	return a.stick.there() || slices.ContainsFunc(a.peerWays(), func(n fetch.Named) bool { return n.Key != ownCache })
}

// httpsMetadata is get, not asked while HTTPS is known not to get through and
// the link is up.
func (a *Agent) httpsMetadata(get trust.MetadataSource) trust.MetadataSource {
	return func(ctx context.Context, name string) ([]byte, error) {
		if up, _ := a.conn.up(); up {
			if why := a.chain.Avoided()[byHTTPS]; why != nil {
				return nil, fmt.Errorf("not asked by HTTPS: %w", why)
			}
		}
		b, err := get(ctx, name)
		a.httpsWorks.Store(err == nil || errors.Is(err, fs.ErrNotExist))
		if err != nil && ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist) {
			a.chain.Failed(byHTTPS, err)
		}
		return b, err
	}
}

// noteWays tells that HTTPS does not get through while the link does, until it
// is seen to work again. It is for the health loop.
func (a *Agent) noteWays() {
	why, brought := a.chain.Avoided()[byHTTPS], a.chain.Bytes()[byHTTPS]
	up, _ := a.conn.up()
	switch blocked := a.board.Holds(health.HTTPSBlocked); {
	case why != nil && up && !blocked && len(a.ways) > 1:
		a.board.Set(health.HTTPSBlocked, health.Info, "blobs and trust metadata come over the device link; "+why.Error())
		a.httpsBrought = brought
	case why == nil && blocked && (brought > a.httpsBrought || a.httpsWorks.Load()):
		a.board.Clear(health.HTTPSBlocked)
	}
}

// sourceBytes is the form of bytes by way that reports have.
func sourceBytes(by map[string]int64) []wire.SourceBytes {
	var out []wire.SourceBytes
	for _, name := range slices.Sorted(maps.Keys(by)) {
		out = append(out, wire.SourceBytes{Name: name, Bytes: by[name]})
	}
	return out
}

// message takes what comes down.
func (a *Agent) message(kind wire.Kind, payload []byte) {
	if kind == wire.DownChunk {
		a.overLink.Message(payload)
		return
	}
	a.inbox.put(kind, payload)
}
