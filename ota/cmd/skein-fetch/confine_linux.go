package main

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// confine takes from this process, and the git that it may start, what it does
// not need: writing outside dir, files above limit, core dumps, new
// privileges, and, where the kernel knows how, connections to other ports. It
// reports whether the kernel has Landlock.
func confine(dir, ca string, u *url.URL, limit int64) (bool, error) {
	// The temporary files of git and go-getter belong into dir as well.
	for k, v := range map[string]string{"TMPDIR": dir, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1",
		"GIT_ALLOW_PROTOCOL": "http:https"} {
		if err := os.Setenv(k, v); err != nil {
			return false, err
		}
	}
	debug.SetMemoryLimit(64 << 20)
	signal.Ignore(unix.SIGXFSZ) // writing then fails with EFBIG
	for what, l := range map[int]unix.Rlimit{unix.RLIMIT_FSIZE: {Cur: uint64(limit), Max: uint64(limit)}, unix.RLIMIT_CORE: {}, unix.RLIMIT_NOFILE: {Cur: 256, Max: 256}} {
		if err := unix.Setrlimit(what, &l); err != nil {
			return false, fmt.Errorf("limit %d: %w", what, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return false, fmt.Errorf("no new privileges: %w", err)
	}
	abi, err := landlockABI()
	if err != nil {
		return false, nil
	}
	rules := []landlock.Rule{
		landlock.RWDirs(dir).WithRefer(),
		landlock.RODirs("/usr", "/lib", "/lib64", "/bin", "/etc/ssl", "/etc/pki", "/usr/local").IgnoreIfMissing(),
		landlock.ROFiles("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ld.so.cache", "/etc/passwd", "/etc/services", "/etc/mime.types", "/dev/urandom", "/dev/random").IgnoreIfMissing(),
		landlock.RWFiles("/dev/null").IgnoreIfMissing(),
	}
	for _, f := range []string{ca, os.Getenv("SSL_CERT_FILE"), os.Getenv("GOOGLE_APPLICATION_CREDENTIALS"), os.Getenv("AWS_SHARED_CREDENTIALS_FILE"),
		filepath.Join(home(), ".aws", "credentials"), filepath.Join(home(), ".aws", "config")} {
		if f != "" && unix.Access(f, unix.R_OK) == nil {
			rules = append(rules, landlock.ROFiles(f))
		}
	}
	if abi >= 4 {
		rules = append(rules, ports(u)...)
	}
	if err := landlock.V5.BestEffort().Restrict(rules...); err != nil {
		return false, fmt.Errorf("landlock: %w", err)
	}
	return true, nil
}

// ports are those of the web, of the source, of the proxies and of an emulator
// of Google's storage.
func ports(u *url.URL) []landlock.Rule {
	rules := []landlock.Rule{landlock.ConnectTCP(443), landlock.ConnectTCP(80), landlock.ConnectTCP(53)}
	addresses := []*url.URL{u}
	for _, k := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "STORAGE_EMULATOR_HOST"} {
		if p, err := url.Parse(os.Getenv(k)); err == nil {
			addresses = append(addresses, p)
		}
	}
	for _, a := range addresses {
		if n, err := strconv.ParseUint(a.Port(), 10, 16); err == nil {
			rules = append(rules, landlock.ConnectTCP(uint16(n)))
		}
	}
	return rules
}

func home() string {
	if h := os.Getenv("HOME"); h != "" {
		return h
	}
	return "/nonexistent"
}

// landlockABI asks the kernel which version of Landlock it has.
func landlockABI() (int, error) {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, errno
	}
	return int(abi), nil
}
