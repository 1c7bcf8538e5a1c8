package board

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// SocketVariable names the environment variable by which the executables of a
// board find its model.
const SocketVariable = "SKEIN_BOARD"

// Tools are the executables of a board.
var Tools = []string{"tegrastats", "nvpmodel", "nvbootctrl", "reboot", "trtexec"}

// IsTool says whether a program was started under the name of an executable of
// a board. trtexec is answered by the program itself.
func IsTool(argv0 string) bool {
	name := filepath.Base(argv0)
	return name != "trtexec" && slices.Contains(Tools, name)
}

// Main is a tool: it asks the board and prints what it says. It returns the
// exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	name := filepath.Base(args[0])
	c, err := new(net.Dialer).DialContext(ctx, "unix", os.Getenv(SocketVariable))
	if err != nil {
		fmt.Fprintf(stderr, "%s: there is no board: %v\n", name, err)
		return 1
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	interval := time.Duration(0)
	if name == "tegrastats" {
		interval = time.Second
		if i := slices.Index(args, "--interval"); i > 0 && i+1 < len(args) {
			ms, err := strconv.Atoi(args[i+1])
			if err != nil || ms < 1 {
				fmt.Fprintf(stderr, "%s: bad interval %q\n", name, args[i+1])
				return 1
			}
			interval = time.Duration(ms) * time.Millisecond
		}
	}
	out, in := json.NewEncoder(c), bufio.NewReader(c)
	for {
		a, err := ask(out, in, call{Tool: name, Args: args[1:]})
		if err != nil {
			fmt.Fprintf(stderr, "%s: the board is gone: %v\n", name, err)
			return 1
		}
		if _, err := io.WriteString(stdout, a.Out); err != nil {
			return 1
		}
		if _, err := io.WriteString(stderr, a.Err); err != nil {
			return 1
		}
		if interval == 0 {
			return a.Code
		}
		select {
		case <-ctx.Done():
			return 0
		case <-time.After(interval):
		}
	}
}

func ask(out *json.Encoder, in *bufio.Reader, q call) (a answer, err error) {
	if err := out.Encode(q); err != nil {
		return a, err
	}
	line, err := in.ReadBytes('\n')
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(line, &a)
}
