package hil

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// SSHOptions say how boards are reached.
type SSHOptions struct {
	Command []string // the system's client when empty: ssh
	Args    []string // more options for it, as -i FILE
	Dir     string   // folder on the board; empty: /tmp/skein-hil
	// Agents and Programs are the binaries by architecture as Go names it.
	Agents, Programs map[string]string
}

// remote runs the agent on a board that ssh reaches. One connection carries
// everything: the agent's own process, its network line (forwarded back to this
// machine), its sockets (forwarded here).
type remote struct {
	d      *Device
	target []string // options and destination
	dir    string   // on the board
	port   int      // of the line, on the board

	once  sync.Once
	ready error
}

// newRemote reads ssh://[USER@]HOST[:PORT].
func newRemote(d *Device, board string) (*remote, error) {
	u, err := url.Parse(board)
	if err != nil || u.Scheme != "ssh" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || strings.HasPrefix(u.Host, "-") {
		return nil, fmt.Errorf("device %q: want ssh://USER@HOST or ssh://USER@HOST:PORT", board)
	}
	r := &remote{d: d, port: 20000 + (os.Getpid()*31+d.n*7)%30000}
	r.dir = path.Join(cmp.Or(d.o.SSH.Dir, "/tmp/skein-hil"), fmt.Sprintf("%d-%s", os.Getpid(), d.Name()))
	if strings.ContainsAny(r.dir, " '\"\\") {
		return nil, fmt.Errorf("folder %q on the board: want a path without blanks and quotes", r.dir)
	}
	r.target = append(r.target, "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=5")
	r.target = append(r.target, d.o.SSH.Args...)
	if u.Port() != "" {
		r.target = append(r.target, "-p", u.Port())
	}
	host := u.Hostname()
	if u.User != nil {
		host = u.User.Username() + "@" + host
	}
	r.target = append(r.target, "--", host)
	return r, nil
}

// command is one call of the client; options stand before the destination.
func (r *remote) command(ctx context.Context, options []string, script string) *exec.Cmd {
	client := r.d.o.SSH.Command
	if len(client) == 0 {
		client = []string{"ssh"}
	}
	words := append(append([]string(nil), client...), options...)
	words = append(append(words, r.target...), script)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// do runs a script on the board, over the connection that is open.
func (r *remote) do(ctx context.Context, script string, in io.Reader) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := r.command(ctx, []string{"-S", r.control(), "-o", "ControlMaster=no"}, script)
	cmd.Stdin = in
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ssh: %s: %w: %s", script, err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

func (r *remote) control() string { return filepath.Join(r.d.sockets, "ssh") }

// send copies a file to the board.
func (r *remote) send(ctx context.Context, from, to, mode string) error {
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy to the board: %w", err)
	}
	defer f.Close()
	_, err = r.do(ctx, fmt.Sprintf("cat > '%s.part' && chmod %s '%s.part' && mv '%s.part' '%s'", to, mode, to, to, to), f)
	return err
}

var machines = map[string]string{"aarch64": "arm64", "arm64": "arm64", "x86_64": "amd64", "amd64": "amd64"}

// prepare copies the programs, once.
func (r *remote) prepare(ctx context.Context) error {
	out, err := r.do(ctx, fmt.Sprintf("umask 077 && mkdir -p '%s/state' && uname -m", r.dir), nil)
	if err != nil {
		return err
	}
	arch := machines[out]
	agent, program := r.d.o.SSH.Agents[arch], r.d.o.SSH.Programs[arch]
	if agent == "" || program == "" {
		return fmt.Errorf("the board is %s, and there is no skein-agent and skein-sim for it: build them with make build build-arm64", out)
	}
	claim := filepath.Join(r.d.dir, "claim")
	if err := os.WriteFile(claim, []byte(r.d.claim), 0o600); err != nil {
		return fmt.Errorf("write the claim: %w", err)
	}
	for _, f := range [][3]string{{agent, "skein-agent", "700"}, {program, "skein-sim", "700"}, {claim, "claim", "600"}} {
		if err := r.send(ctx, f[0], path.Join(r.dir, f[1]), f[2]); err != nil {
			return err
		}
	}
	return nil
}

// script starts the agent on the board: its process is the shell's.
func (r *remote) script() string {
	flags := r.d.flags(path.Join(r.dir, "state"), path.Join(r.dir, "agent.sock"), path.Join(r.dir, "claim"),
		serveCommand(path.Join(r.dir, "skein-sim")), "")
	for i, f := range flags {
		flags[i] = "'" + strings.ReplaceAll(f, "'", `'\''`) + "'"
	}
	return fmt.Sprintf("cd '%s' && rm -f agent.sock agent-tap.sock && echo $$ > pid && HTTPS_PROXY=http://127.0.0.1:%d exec ./skein-agent %s", r.dir, r.port, strings.Join(flags, " "))
}

// forwards are what the connection carries besides the agent.
func (r *remote) forwards() []string {
	return []string{"-o", "ExitOnForwardFailure=yes", "-o", "StreamLocalBindUnlink=yes", "-M", "-S", r.control(),
		"-R", fmt.Sprintf("127.0.0.1:%d:127.0.0.1:%d", r.port, r.d.line.Port()),
		"-L", r.d.socket() + ":" + path.Join(r.dir, "agent.sock"),
		"-L", r.d.tap() + ":" + tapOf(path.Join(r.dir, "agent.sock"))}
}

func (r *remote) start(ctx context.Context) (*process, error) {
	r.once.Do(func() { r.ready = r.prepare(ctx) })
	if r.ready != nil {
		return nil, r.ready
	}
	log, err := os.OpenFile(filepath.Join(r.d.dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the agent's log: %w", err)
	}
	// A connection that was killed may have left its socket.
	if err := os.Remove(r.control()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(err, log.Close())
	}
	cmd := r.command(context.WithoutCancel(ctx), r.forwards(), r.script())
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start ssh: %w", err), log.Close())
	}
	p := &process{done: make(chan struct{})}
	signal := func(name string) {
		script := fmt.Sprintf("kill -%s $(cat '%s/pid')", name, r.dir)
		if _, err := r.do(context.WithoutCancel(ctx), script, nil); err != nil {
			r.d.o.Logger.Warn("signal the agent on the board", "device", r.d.Name(), "error", err)
			_ = cmd.Process.Kill()
		}
	}
	p.kill = func() { signal("KILL") }
	p.stop = sync.OnceFunc(func() { signal("TERM") })
	go func() {
		err := cmd.Wait()
		if err != nil {
			err = fmt.Errorf("ssh: %w: %s", err, tail(log.Name()))
		}
		p.err = errors.Join(err, log.Close())
		close(p.done)
	}()
	return p, nil
}

// carry implements machine.
func (r *remote) carry(ctx context.Context, file string) (string, error) {
	to := path.Join(r.dir, filepath.Base(file))
	return to, r.send(ctx, file, to, "600")
}

// close takes away what was copied there.
func (r *remote) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err := r.do(ctx, fmt.Sprintf("rm -rf '%s'", r.dir), nil)
	return err
}
