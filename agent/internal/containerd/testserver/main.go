// Command testserver is what the containers of the tests run: a server of the
// KServe v2 protocol, and ways of going wrong. Only tests use it.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "testserver: no command")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "testserver:", err)
		os.Exit(1)
	}
}

func run(command string, args []string) error {
	switch command {
	case "serve":
		return serve(args)
	case "exit":
		code, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		fmt.Println("ending with", code)
		os.Exit(code)
	case "wait": // until it is asked to end
		ch := make(chan os.Signal, 1)
		signal.Notify(ch, syscall.SIGTERM)
		fmt.Println("waiting")
		<-ch
	case "stubborn": // does not end when it is asked to
		ch := make(chan os.Signal, 1)
		signal.Notify(ch, syscall.SIGTERM)
		fmt.Println("stubborn")
		for range ch {
			fmt.Println("no")
		}
	case "hog":
		return hog(args[0])
	case "print":
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		for i := range n {
			fmt.Printf("line %d %s\n", i, strings.Repeat("x", 90))
		}
		return run("wait", nil)
	case "look":
		return look(args)
	default:
		return fmt.Errorf("unknown command %s", command)
	}
	return nil
}

// hog takes memory until the kernel objects.
func hog(mib string) error {
	n, err := strconv.Atoi(mib)
	if err != nil {
		return err
	}
	fmt.Println("taking", n, "MiB")
	var all [][]byte
	for range n {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
	fmt.Println("have", len(all), "MiB")
	return nil
}

// look prints what the container gives: lines of the process's status, the
// environment, and whether paths can be written or read.
func look(args []string) error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		for _, want := range []string{"Uid:", "Gid:", "Groups:", "CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:"} {
			if strings.HasPrefix(line, want) {
				fmt.Println(strings.Join(strings.Fields(line), " "))
			}
		}
	}
	if b, err := os.ReadFile("/proc/self/uid_map"); err == nil {
		fmt.Println("uid_map:", strings.Join(strings.Fields(string(b)), " "))
	}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "PATH=") {
			fmt.Println("env:", e)
		}
	}
	for _, p := range args {
		if name, ok := strings.CutPrefix(p, "write:"); ok {
			fmt.Printf("write %s: %v\n", name, os.WriteFile(name, []byte("x"), 0o600))
			continue
		}
		b, err := os.ReadFile(p)
		fmt.Printf("read %s: %v %.60q\n", p, err, b)
	}
	ifs, err := net.Interfaces()
	fmt.Println("interfaces:", len(ifs), err)
	return nil
}

// scaler answers with its input times a factor.
type scaler float32

func (s scaler) Infer(_ context.Context, id string, req runtime.Request) (runtime.Response, error) {
	if len(req.Inputs) != 1 || req.Inputs[0].Name != "x" {
		return runtime.Response{}, fmt.Errorf("%w: want one input, x", runtime.ErrBadRequest)
	}
	in := req.Inputs[0]
	out := runtime.Tensor{Name: "y", Shape: in.Shape, Data: make([]float32, len(in.Data))}
	for i, v := range in.Data {
		out.Data[i] = v * float32(s)
	}
	model, version, _ := strings.Cut(id, ":")
	return runtime.Response{ModelName: model, ModelVersion: version, ID: req.ID, Outputs: []runtime.Tensor{out}}, nil
}

func serve(args []string) error {
	f := flag.NewFlagSet("serve", flag.ContinueOnError)
	addr := f.String("addr", "", "HOST:PORT")
	model := f.String("model", "m", "")
	version := f.String("version", "1", "")
	factor := f.Float64("factor", 1, "")
	never := f.Bool("never-ready", false, "")
	bad := f.Bool("bad", false, "a model that cannot run here")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *bad {
		fmt.Fprintln(os.Stderr, "this model cannot run here")
		os.Exit(65)
	}
	h := kserve.NewHandler(kserve.Options{Inferer: scaler(*factor), Models: func(context.Context) ([]kserve.Model, error) {
		info := []kserve.TensorInfo{{Name: "x", Datatype: "FP32", Shape: []int64{-1, -1}}}
		out := []kserve.TensorInfo{{Name: "y", Datatype: "FP32", Shape: []int64{-1, -1}}}
		return []kserve.Model{{ID: *model + ":" + *version, Name: *model, Version: *version, Ready: !*never, Serving: true, Inputs: info, Outputs: out}}, nil
	}})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	srv := &http.Server{Addr: *addr, Handler: h}
	fmt.Println("serving", *model, *version)
	failed := make(chan error, 1)
	go func() { failed <- srv.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return srv.Shutdown(context.WithoutCancel(ctx))
	}
}
