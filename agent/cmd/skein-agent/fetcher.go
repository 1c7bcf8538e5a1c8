package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/skein-fleet/skein/agent"
)

// mirrorFetcher finds skein-fetch and the user that it runs as.
func mirrorFetcher(o runOptions, log *slog.Logger) (agent.Fetcher, error) {
	f := agent.Fetcher{Binary: o.fetcher, Dir: o.fetcherDir, Logger: log}
	switch f.Binary {
	case "none":
		return agent.Fetcher{}, nil
	case "":
		self, err := os.Executable()
		if err != nil {
			return f, fmt.Errorf("find this program: %w", err)
		}
		f.Binary = filepath.Join(filepath.Dir(self), "skein-fetch")
		if st, err := os.Stat(f.Binary); err != nil || !st.Mode().IsRegular() {
			return agent.Fetcher{}, nil
		}
	default:
		if st, err := os.Stat(f.Binary); err != nil || !st.Mode().IsRegular() {
			return f, fmt.Errorf("%w: --fetcher %s: no such program", errUsage, f.Binary)
		}
	}
	if f.Dir == "" {
		f.Dir = filepath.Join(o.state, "fetch")
	}
	var err error
	if f.Dir, err = filepath.Abs(f.Dir); err != nil {
		return f, fmt.Errorf("--fetcher-dir: %w", err)
	}
	if o.fetcherUser == "" {
		return f, nil
	}
	u, err := user.Lookup(o.fetcherUser)
	if err != nil {
		return f, fmt.Errorf("%w: --fetcher-user: %w", errUsage, err)
	}
	uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
	gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
	if errUID != nil || errGID != nil || uid == 0 {
		return f, fmt.Errorf("%w: --fetcher-user %s: want a user that is not root", errUsage, o.fetcherUser)
	}
	f.UID, f.GID = uint32(uid), uint32(gid)
	return f, nil
}
