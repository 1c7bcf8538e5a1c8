package slot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
)

const killDir = "SKEIN_TEST_KILL_DIR"

// TestMain lets the test binary be the process that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(killDir); dir != "" {
		fmt.Fprintln(os.Stderr, writeForever(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func numbered(i int) string { return fmt.Sprintf("%d:%s", i, strings.Repeat("x", 20_000)) }

// writeForever replaces a file and appends to the journal, and says each time
// what has returned.
func writeForever(dir string) error {
	f, err := OpenDir(dir)
	if err != nil {
		return err
	}
	j, err := OpenJournal(f, "journal")
	if err != nil {
		return err
	}
	for i := len(j.Entries()); ; i++ {
		if err := f.WriteFile("d/state", []byte(numbered(i))); err != nil {
			return err
		}
		if err := j.Append(Entry{Update: fmt.Sprint(i), Step: ota.StepStage, Message: strings.Repeat("m", 3000), Time: time.Unix(int64(i), 0)}); err != nil {
			return err
		}
		if _, err := fmt.Println(i); err != nil {
			return err
		}
	}
}

// TestKillNine kills a real process over a real directory, time and again.
func TestKillNine(t *testing.T) {
	dir := t.TempDir()
	last := -1
	for round := range 15 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n <= round && lines.Scan(); n++ {
			if _, err := fmt.Sscan(lines.Text(), &last); err != nil {
				t.Errorf("child said %q", lines.Text())
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			if _, err := fmt.Sscan(lines.Text(), &last); err != nil {
				t.Errorf("child said %q", lines.Text())
			}
		}
		if err := cmd.Wait(); errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
		f, err := OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.ReadFile("d/state")
		if err != nil || last < 0 || string(got) != numbered(last) && string(got) != numbered(last+1) {
			t.Fatalf("round %d: after %d returned the file has %.20q and %d bytes: %v", round, last, got, len(got), err)
		}
		j, err := OpenJournal(f, "journal")
		if err != nil || j.Damaged() {
			t.Fatal(err)
		}
		entries := j.Entries()
		if n := len(entries); n != last+1 && n != last+2 {
			t.Fatalf("round %d: after %d appends returned the journal has %d entries", round, last+1, n)
		}
		for i, e := range entries {
			if e.Update != fmt.Sprint(i) {
				t.Fatalf("round %d: entry %d is %q", round, i, e.Update)
			}
		}
		last = len(entries) - 1
		j.Close()
		f.Close()
	}
}
