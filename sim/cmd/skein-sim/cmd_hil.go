package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/hil"
	"github.com/skein-fleet/skein/sim/jetson/rootfs"
	"github.com/skein-fleet/skein/sim/scenario/play"
)

type hilOptions struct {
	runOptions
	agent, arch, jetpack string
	boards, sshArgs      []string
	sshDir               string
}

func (a *app) hilCmd() *cobra.Command {
	var o hilOptions
	cmd := &cobra.Command{
		Use:   "hil [FILE…]",
		Short: "run scenarios on the shipped agent, as processes or on real boards",
		Long: `hil runs scenario files as run does, but each device is the shipped skein-agent as a
process of its own. It finds a board below it: files of /proc, /sys and /etc as the
JetPack has them, and the programs tegrastats, nvpmodel, nvbootctrl, reboot and
trtexec, which the model of the board answers. Its network is a proxy in which the
faults of lines happen; a kill is kill -9 of the agent and of all that it started.

With --arch arm64 on another machine the agent runs under qemu-aarch64-static. With
--device it runs on real boards, to which ssh copies it and its model server and
which ssh connects with the control plane here; nothing is left there.

Refused before the run, since a process cannot have them: clock1970 and diskfull; on
real boards also heat, boottrap, route and releases with an operating system. lose
drops segments of the line (messages are inside of TLS), and lost counts no events.

Exit codes are those of run: 3 when an expectation failed.`,
		Example: `  skein-sim hil sim/scenario/testdata/bad-version.scn
  skein-sim hil --jetpack 5.1.3 sim/scenario/testdata/kills.scn
  skein-sim hil --arch arm64 --stretch 3 sim/scenario/testdata/happy-path.scn
  skein-sim hil --device ssh://root@orin-7 --device ssh://root@orin-8 two-boards.scn
  skein-sim hil boards -o json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.scenarios = append(o.scenarios, args...)
			if len(o.scenarios) == 0 {
				return usageError{errors.New("name a scenario file (see: skein-sim hil --help)")}
			}
			return a.runHIL(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.scenarios, "scenario", nil, "scenario file (repeatable; arguments are more of them)")
	f.StringVar(&o.agent, "agent", "", "skein-agent; empty looks beside this program, then in PATH")
	f.StringVar(&o.arch, "arch", "", "architecture of the agent: amd64 or arm64; empty is that of this program")
	f.StringVar(&o.jetpack, "jetpack", "", "JetPack of modelled boards, or its L4T; empty: that of each board's model")
	f.StringArrayVar(&o.boards, "device", nil, "real board, ssh://USER@HOST[:PORT] (repeatable)")
	f.StringArrayVar(&o.sshArgs, "ssh-arg", nil, "one more word for ssh, as -i and FILE (repeatable)")
	f.StringVar(&o.sshDir, "device-dir", "/tmp/skein-hil", "folder for everything on real boards")
	f.StringVar(&o.skeind, "skeind", "", "skeind binary for scenarios that kill it; empty looks beside this program and in PATH")
	f.StringVar(&o.data, "data", "", "folder for all data; empty: a temporary one, removed at the end")
	f.StringVar(&o.digits, "digits", "", "folder of the MNIST files; empty looks in the module cache")
	f.Float64Var(&o.stretch, "stretch", 1, "multiply the script's times, for a slow machine")
	f.StringVar(&o.events, "events", "", "file for the log of events")
	cmd.AddCommand(a.hilBoardsCmd())
	return cmd
}

func (a *app) runHIL(ctx context.Context, o hilOptions) error {
	ho, err := o.resolve()
	if err != nil {
		return usageError{err}
	}
	ho.Logger = a.logger()
	scripts, err := readScripts(o.scenarios)
	if err != nil {
		return usageError{err}
	}
	for i, s := range scripts {
		if err := hil.Check(s, ho); err != nil {
			return usageError{fmt.Errorf("%s: %w", o.scenarios[i], err)}
		}
	}
	o.runOptions.tune = func(p *play.Options) { p.Fleet, p.Host = hil.New(ho), hil.Host }
	return a.runScenarios(ctx, o.runOptions)
}

// resolve finds the programs.
func (o *hilOptions) resolve() (hil.Options, error) {
	self, err := os.Executable()
	if err != nil {
		return hil.Options{}, fmt.Errorf("find this program: %w", err)
	}
	ho := hil.Options{Program: self, JetPack: o.jetpack, Boards: o.boards, SSH: hil.SSHOptions{Args: o.sshArgs, Dir: o.sshDir,
		Agents: map[string]string{}, Programs: map[string]string{}}}
	if o.jetpack != "" && !rootfs.HasJetPack(o.jetpack) {
		_, err := rootfs.FindJetPack(o.jetpack, rootfs.Modules[0])
		return ho, fmt.Errorf("--jetpack: %w", err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		ho.SSH.Agents[arch], ho.SSH.Programs[arch] = beside(self, arch, "skein-agent"), beside(self, arch, "skein-sim")
	}
	if len(o.boards) > 0 {
		return ho, nil
	}
	if ho.Agent, ho.Emulator, err = hil.FindAgent(self, o.agent, o.arch); err != nil {
		return ho, err
	}
	return ho, nil
}

// beside finds a program of an architecture beside this one, "" when there is none.
func beside(self, arch, name string) string {
	path := hil.Beside(self, arch, name)
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// boardRow is one line of the table of boards.
type boardRow struct {
	Module  string `json:"module"`
	Board   string `json:"board"`
	JetPack string `json:"jetpack"`
	L4T     string `json:"l4t"`
	Want    string `json:"target"`
	Found   string `json:"identified"`
	OK      bool   `json:"ok"`
}

func (a *app) hilBoardsCmd() *cobra.Command {
	var agent string
	cmd := &cobra.Command{
		Use:   "boards",
		Short: "let the shipped agent identify every module with every JetPack",
		Long:  "boards makes the files of each module under each JetPack that was made for it, from 4.6 to 7,\nlets the shipped agent look at them, and prints what it found. The exit code is 3 when one of them\nis not identified.",
		Example: `  skein-sim hil boards
  skein-sim hil boards -o json | jq -r '.[] | select(.ok | not) | .module'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			path, emulator, err := hil.FindAgent(self, agent, "")
			if err != nil {
				return usageError{err}
			}
			return a.identifyBoards(cmd.Context(), append(emulator, path))
		},
	}
	cmd.Flags().StringVar(&agent, "agent", "", "skein-agent; empty looks beside this program, then in PATH")
	return cmd
}

func (a *app) identifyBoards(ctx context.Context, agent []string) error {
	dir, remove, err := dataDir("")
	if err != nil {
		return err
	}
	var rows []boardRow
	bad := 0
	for _, j := range rootfs.JetPacks {
		for _, m := range rootfs.Modules {
			if !j.Runs(m) {
				continue
			}
			row, err := identifyBoard(ctx, agent, filepath.Join(dir, m.Key+"-"+j.L4T), rootfs.Board{Module: m, JetPack: j, Serial: "1421123456789"})
			if err != nil {
				return errors.Join(err, remove())
			}
			if !row.OK {
				bad++
			}
			rows = append(rows, row)
		}
	}
	if err := errors.Join(remove(), a.emit(rows, func(w io.Writer) error { return boardsText(w, rows) })); err != nil {
		return err
	}
	if bad > 0 {
		return expectationError{fmt.Errorf("%d of %d boards are not identified", bad, len(rows))}
	}
	return nil
}

func identifyBoard(ctx context.Context, agent []string, root string, b rootfs.Board) (boardRow, error) {
	row := boardRow{Module: b.Module.Key, Board: b.Module.Board, JetPack: b.JetPack.Name, L4T: b.JetPack.L4T, Want: b.Target().String()}
	if err := rootfs.Write(root, b); err != nil {
		return row, err
	}
	defer os.RemoveAll(root)
	id, err := hil.Identify(ctx, agent, root)
	if err != nil {
		return row, err
	}
	row.Found, row.OK = id.Target, b.Matches(id.Target) && id.Serial == b.Serial && id.Hardware == b.Module.Product
	return row, nil
}

func boardsText(out io.Writer, rows []boardRow) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "JETPACK\tL4T\tMODULE\tBOARD\t\tIDENTIFIED AS")
	for _, r := range rows {
		word := "ok"
		if !r.OK {
			word = "WRONG"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.JetPack, r.L4T, r.Module, r.Board, word, r.Found)
	}
	return w.Flush()
}
