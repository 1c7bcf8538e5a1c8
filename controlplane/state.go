package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/pki"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	online "github.com/skein-fleet/skein/ota/trust/signer"
)

const adminName = "admin.token"

// openState opens database, CA and trust repository, making them at the first start.
func (s *Server) openState(ctx context.Context) (err error) {
	if s.files, err = slot.OpenDir(s.cfg.DataDir); err != nil {
		return fmt.Errorf("open data folder: %w", err)
	}
	if s.db, err = store.Open(ctx, filepath.Join(s.cfg.DataDir, "skein.db")); err != nil {
		return err
	}
	if err := s.fixDomain(ctx); err != nil {
		return err
	}
	if s.ca, err = pki.Open(s.files, s.cfg.Domain, s.now()); err != nil {
		return err
	}
	return s.openTrust()
}

// openTrust opens the image repository. Without one, and without a signer, it
// makes one for development.
func (s *Server) openTrust() error {
	dir := filepath.Join(s.cfg.DataDir, "trust")
	var keys trust.Online
	if s.cfg.Signer != "" {
		c, err := online.NewClient(s.cfg.Signer)
		if err != nil {
			return err
		}
		keys = c
	}
	repo, err := trust.OpenRepo(dir, keys)
	if errors.Is(err, trust.ErrNoRepo) && keys != nil {
		return fmt.Errorf("%w in %s: with a signer it is made by skein trust init and skein trust sign, and copied there", err, dir)
	}
	if errors.Is(err, trust.ErrNoRepo) {
		sum, err2 := trust.InitDev(dir, s.cfg.Domain, s.now())
		if err2 != nil {
			return err2
		}
		s.logger.Warn("made a development trust repository: all its private keys are in one folder", "folder", dir, "root", string(sum.RootDigest))
		repo, err = trust.OpenRepo(dir)
	}
	if err != nil {
		return err
	}
	s.trust = repo
	if err := repo.Refresh(s.now()); err != nil {
		if repo.Status().Roles[1].Version == 0 {
			return fmt.Errorf("trust repository in %s is not ready: %w: see skein trust status --dir %s", dir, err, dir)
		}
		s.logger.Error("sign TUF metadata anew", "err", err) // what is published is good until it expires
	}
	return nil
}

// fixDomain holds the trust domain to that of the first start: certificates of
// devices carry it.
func (s *Server) fixDomain(ctx context.Context) error {
	return s.db.Update(ctx, func(tx *store.Tx) error {
		was, err := tx.Setting(ctx, store.DefaultTenant, "domain")
		if errors.Is(err, store.ErrNotFound) {
			return tx.SetSetting(ctx, store.DefaultTenant, "domain", s.cfg.Domain)
		}
		if err == nil && was != s.cfg.Domain {
			err = fmt.Errorf("domain is %q, this data folder was made for %q: devices carry it in their certificates, so it cannot change", s.cfg.Domain, was)
		}
		return err
	})
}

// epoch returns the epoch of generations, raised when the data was restored.
func (s *Server) epoch(ctx context.Context) (epoch uint64, err error) {
	err = s.db.Update(ctx, func(tx *store.Tx) error {
		text, err := tx.Setting(ctx, store.DefaultTenant, "epoch")
		switch {
		case errors.Is(err, store.ErrNotFound):
			epoch = 1
		case err != nil:
			return err
		default:
			if epoch, err = strconv.ParseUint(text, 10, 64); err != nil {
				return fmt.Errorf("stored epoch: %w", err)
			}
		}
		if s.cfg.Restored {
			epoch++
			s.logger.Warn("data was restored from a backup: epoch raised", "epoch", epoch)
		}
		return tx.SetSetting(ctx, store.DefaultTenant, "epoch", strconv.FormatUint(epoch, 10))
	})
	return epoch, err
}

// firstAdmin makes the admin credential of a fresh installation and returns its
// token, at later starts the one from its file. The file comes first: a crash
// in between leaves a token whose credential the next start makes, and not a
// credential whose token nobody knows.
func (s *Server) firstAdmin(ctx context.Context) (string, error) {
	token, err := s.files.ReadFile(adminName)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read admin token: %w", err)
	}
	var have int
	if err := s.db.View(ctx, func(tx *store.Tx) error {
		all, err := tx.Credentials(ctx, store.DefaultTenant)
		have = len(all)
		return err
	}); err != nil {
		return "", err
	}
	if have > 0 {
		return string(token), nil // empty: the file was removed on purpose
	}
	if len(token) == 0 {
		token = []byte(auth.NewToken())
		if err := s.files.WriteFile(adminName, token); err != nil {
			return "", fmt.Errorf("write admin token: %w", err)
		}
	}
	if _, err = s.guard.CreateWith(ctx, string(token), store.DefaultTenant, "admin", auth.Admin, 0); err != nil {
		return "", fmt.Errorf("make admin credential: %w", err)
	}
	s.fresh = true
	return string(token), nil
}
