package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/skein-fleet/skein/proto/gen/skein/artifact/v1/artifactv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/audit/v1/auditv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/auth/v1/authv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/build/v1/buildv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/fleet/v1/fleetv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/release/v1/releasev1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/rollout/v1/rolloutv1connect"
)

// login is one saved server with its credential.
type login struct {
	Server string `json:"server"`
	Token  string `json:"token"`
}

// configFile is the saved state of the command line, mode 0600.
type configFile struct {
	Current  string           `json:"current"`
	Contexts map[string]login `json:"contexts"`
}

// config is what is in force: flags over environment over file.
type config struct {
	path   string
	file   configFile
	server string
	token  string
}

func (a *app) loadConfig() error {
	c := &a.config
	c.path = a.env.getenv("SKEIN_CONFIG")
	if c.path == "" {
		dir, err := a.env.configDir()
		if err != nil {
			return hinted{fmt.Errorf("find the configuration folder: %w", err), "set SKEIN_CONFIG to a file path"}
		}
		c.path = filepath.Join(dir, "skein", "config.json")
	}
	b, err := os.ReadFile(c.path)
	if err == nil {
		if err := json.Unmarshal(b, &c.file); err != nil {
			return hinted{fmt.Errorf("read %s: %w", c.path, err), "mend or remove the file, then log in again"}
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read %s: %w", c.path, err)
	}
	name := cmp.Or(a.flags.context, a.env.getenv("SKEIN_CONTEXT"))
	saved, known := c.file.Contexts[cmp.Or(name, c.file.Current)]
	if name != "" && !known {
		return unsavedContext(name)
	}
	c.server = strings.TrimRight(cmp.Or(a.flags.server, a.env.getenv("SKEIN_SERVER"), saved.Server, "http://127.0.0.1:8080"), "/")
	c.token = cmp.Or(a.flags.token, a.env.getenv("SKEIN_TOKEN"))
	if c.token == "" && c.server == saved.Server {
		c.token = saved.Token // it is shown to no other server
	}
	if u, err := url.Parse(c.server); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return usageError{fmt.Errorf("server %q: want http://HOST:PORT or https://HOST", c.server)}
	}
	return nil
}

// save writes the file so that a crash leaves the old or the new one.
func (c *config) save() error {
	b, err := json.MarshalIndent(c.file, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.path), 0o700); err != nil {
		return fmt.Errorf("save login: %w", err)
	}
	tmp := c.path + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save login: %w", err)
	}
	if err := os.Rename(tmp, c.path); err != nil {
		return fmt.Errorf("save login: %w", err)
	}
	return nil
}

func unsavedContext(name string) error {
	return hinted{usageError{fmt.Errorf("context %q is not saved", name)}, "skein context list shows the saved ones"}
}

func (a *app) fleet() fleetv1connect.FleetServiceClient {
	return fleetv1connect.NewFleetServiceClient(a.http(), a.config.server)
}

func (a *app) models() artifactv1connect.ModelServiceClient {
	return artifactv1connect.NewModelServiceClient(a.http(), a.config.server)
}

func (a *app) releases() releasev1connect.ReleaseServiceClient {
	return releasev1connect.NewReleaseServiceClient(a.http(), a.config.server)
}

func (a *app) builds() buildv1connect.BuildServiceClient {
	return buildv1connect.NewBuildServiceClient(a.http(), a.config.server)
}

func (a *app) rollouts() rolloutv1connect.RolloutServiceClient {
	return rolloutv1connect.NewRolloutServiceClient(a.http(), a.config.server)
}

func (a *app) audit() auditv1connect.AuditServiceClient {
	return auditv1connect.NewAuditServiceClient(a.http(), a.config.server)
}

func (a *app) auth() authv1connect.AuthServiceClient {
	return authv1connect.NewAuthServiceClient(a.http(), a.config.server)
}
