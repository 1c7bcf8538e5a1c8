package trust

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// ErrSigner is returned when the holder of the online keys does not answer.
var ErrSigner = errors.New("skein-signer does not answer")

// Online is the holder of the keys of snapshot, timestamp and auto roles, a
// process of its own in production. It checks what it signs.
type Online interface {
	// State says what it knows, so that it is given only what it lacks.
	State(ctx context.Context) (OnlineState, error)
	// Roots gives it the roots after its own, in order.
	Roots(ctx context.Context, roots [][]byte) error
	// Publish signs snapshot and timestamp for targets that persons signed.
	Publish(ctx context.Context, r PublishRequest) (Published, error)
	// List lists a release in an auto role, if the policy allows it.
	List(ctx context.Context, r ListRequest) (Published, error)
}

// OnlineState is what an Online knows.
type OnlineState struct {
	RootVersion int64    `json:"root_version"`
	Keys        []string `json:"keys"`           // ids of its keys
	Auto        []byte   `json:"auto,omitempty"` // its public key for auto roles, SPKI
}

// PublishRequest is what snapshot and timestamp are asked for.
type PublishRequest struct {
	Targets []byte `json:"targets"`
	// What is published now: whatever the signer's own keys have signed tells
	// it, after its state was lost, which versions it used already.
	Snapshot  []byte            `json:"snapshot,omitempty"`
	Timestamp []byte            `json:"timestamp,omitempty"`
	Autos     map[string][]byte `json:"autos,omitempty"` // by role
}

// ListRequest is a release that no person signs.
type ListRequest struct {
	Role      string   `json:"role"`
	Index     []byte   `json:"index"`
	Manifests [][]byte `json:"manifests"` // all of the index, in any order
}

// Published is what an Online signed.
type Published struct {
	Autos     map[string][]byte `json:"autos,omitempty"` // by role
	Snapshot  []byte            `json:"snapshot"`
	Timestamp []byte            `json:"timestamp"`
}

const (
	onlineTimeout = 30 * time.Second
	rootsAtOnce   = 64
)

// publishOnline has snapshot and timestamp signed elsewhere for the targets
// that are current here.
func (r *Repo) publishOnline() error {
	ctx, cancel := context.WithTimeout(context.Background(), onlineTimeout)
	defer cancel()
	if err := r.catchUp(ctx); err != nil {
		return err
	}
	req := PublishRequest{Autos: map[string][]byte{}}
	var err error
	if req.Targets, err = r.files.ReadFile(metaName(r.targets.Signed.Version, metadata.TARGETS)); err != nil {
		return err
	}
	if v := r.timestamp.Signed.Version; v > 0 {
		if req.Timestamp, err = r.files.ReadFile(timestampName); err != nil {
			return err
		}
	}
	if v := r.snapshot.Signed.Version; v > 0 {
		if req.Snapshot, err = r.files.ReadFile(metaName(v, metadata.SNAPSHOT)); err != nil {
			return err
		}
	}
	for role, m := range r.autos {
		if req.Autos[role], err = r.files.ReadFile(metaName(m.Signed.Version, role)); err != nil {
			return err
		}
	}
	p, err := r.online.Publish(ctx, req)
	if err != nil {
		return fmt.Errorf("ask the signer for snapshot and timestamp: %w", err)
	}
	return r.keepPublished(p)
}

// AutoKey returns the public key that auto roles are to be delegated to: that of
// the signer, or one in the folder, which is made at the first call.
func (r *Repo) AutoKey(ctx context.Context) (ed25519.PublicKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.online == nil {
		key, err := keyOf(r.files, autoKind)
		if errors.Is(err, ErrNoKey) {
			key, err = r.keys.generate(r.files, autoKind)
		}
		if err != nil {
			return nil, err
		}
		return key.Public().(ed25519.PublicKey), nil
	}
	state, err := r.online.State(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the signer: %w", err)
	}
	pub, err := x509.ParsePKIXPublicKey(state.Auto)
	if err != nil {
		return nil, fmt.Errorf("the signer's auto key: %w", err)
	}
	ed, ok := pub.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the signer's auto key: %w", ErrKey)
	}
	return ed, nil
}

// catchUp gives the signer the roots that it does not know.
func (r *Repo) catchUp(ctx context.Context) error {
	state, err := r.online.State(ctx)
	if err != nil {
		return fmt.Errorf("ask the signer: %w", err)
	}
	if state.RootVersion > r.root.Signed.Version {
		return fmt.Errorf("the signer trusts root %d, this repository has %d: it came back from an old backup, or the signer is another's", state.RootVersion, r.root.Signed.Version)
	}
	for state.RootVersion < r.root.Signed.Version {
		var roots [][]byte
		for len(roots) < rootsAtOnce && state.RootVersion < r.root.Signed.Version {
			state.RootVersion++
			b, err := r.files.ReadFile(metaName(state.RootVersion, metadata.ROOT))
			if err != nil {
				return err
			}
			roots = append(roots, b)
		}
		if err := r.online.Roots(ctx, roots); err != nil {
			return fmt.Errorf("tell the signer of root %d: %w", state.RootVersion, err)
		}
	}
	return nil
}

// keepPublished makes what the signer signed current, after a look at it: a
// signer whose keys the root does not name must not break the fleet.
func (r *Repo) keepPublished(p Published) error {
	snapshot, err := metadata.Snapshot().FromBytes(p.Snapshot)
	if err != nil {
		return fmt.Errorf("read what the signer answered: %w", err)
	}
	timestamp, err := metadata.Timestamp().FromBytes(p.Timestamp)
	if err != nil {
		return fmt.Errorf("read what the signer answered: %w", err)
	}
	if !r.stands(metadata.SNAPSHOT, snapshot) || !r.stands(metadata.TIMESTAMP, timestamp) {
		return errors.New("the signer's keys are not those of snapshot and timestamp in the root: add them with skein trust add-key")
	}
	entry := snapshot.Signed.Meta["targets.json"]
	if entry == nil || entry.Version != r.targets.Signed.Version {
		return errors.New("the signer signed a snapshot of other targets")
	}
	for role, b := range p.Autos {
		m, err := metadata.Targets().FromBytes(b)
		if err != nil {
			return fmt.Errorf("read what the signer answered for %s: %w", role, err)
		}
		if have := r.autos[role]; have != nil && have.Signed.Version == m.Signed.Version {
			continue
		}
		if name := metaName(m.Signed.Version, role); m.Signed.Version < 1 || !servedName.MatchString(name[len(metaDir)+1:]) {
			return fmt.Errorf("the signer answered with a role %.80q", role)
		} else if err := r.files.WriteFile(name, b); err != nil {
			return err
		}
		r.autos[role] = m
	}
	if err := r.files.WriteFile(metaName(snapshot.Signed.Version, metadata.SNAPSHOT), p.Snapshot); err != nil {
		return err
	}
	if err := r.files.WriteFile(timestampName, p.Timestamp); err != nil {
		return err
	}
	r.snapshot, r.timestamp = snapshot, timestamp
	return r.prune()
}
