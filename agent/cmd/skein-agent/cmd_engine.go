package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/internal/engine"
	"github.com/skein-fleet/skein/agent/internal/host"
	"github.com/skein-fleet/skein/agent/internal/target"
)

func engineCommand(s streams) *cobra.Command {
	c := &cobra.Command{Use: "engine", Short: "TensorRT engines: what this device is, what trtexec printed, why an engine does not load",
		Example: "  skein-agent engine target\n  trtexec --loadEngine=model.plan | skein-agent engine parse\n  skein-agent engine explain server.log"}
	c.AddCommand(engineTargetCommand(s), engineParseCommand(s), engineExplainCommand(s))
	return c
}

func engineTargetCommand(s streams) *cobra.Command {
	var root, output string
	c := &cobra.Command{Use: "target", Short: "Show what engines for this device are bound to", Args: noArgs,
		Long: `Probes board, chip, releases of L4T, CUDA, TensorRT and ONNX Runtime and the power
mode. What cannot be found is left out. The libraries inside of the image that
serves a model count before these of the host.`,
		Example: "  skein-agent engine target\n  skein-agent engine target --root /mnt/rootfs -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := target.Options{Root: root, Arch: runtime.GOARCH}
			if root == "" || root == "/" {
				o.Run = host.Command
			}
			i, err := target.Probe(cmd.Context(), o)
			if err != nil {
				return err
			}
			return printTarget(s.out, i, output)
		}}
	c.Flags().StringVar(&root, "root", "", "look below this folder instead of /")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

func printTarget(out io.Writer, i target.Info, output string) error {
	if output == "json" {
		return json.NewEncoder(out).Encode(map[string]any{"target": i.Target.String(), "model": i.Model, "board": i.Board, "product": i.Product, "serial": i.Serial,
			"jetpack": i.JetPack, "installed": i.Host, "jetpack_ships": i.Ships})
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range [][2]string{{"target", i.Target.String()}, {"model", i.Model}, {"board", i.Board}, {"product", i.Product}, {"serial", i.Serial}, {"JetPack", i.JetPack},
		{"TensorRT", i.Host.TensorRT}, {"CUDA", i.Host.CUDA}, {"ONNX Runtime", i.Host.ONNXRuntime}} {
		if r[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", r[0], r[1])
		}
	}
	if i.Jetson && i.Host.TensorRT == "" && i.Ships.TensorRT != "" {
		fmt.Fprintf(w, "note\tJetPack %s ships TensorRT %s, and it is not installed on the host: engines load only in images that have it\n", i.JetPack, i.Ships.TensorRT)
	}
	return w.Flush()
}

func engineParseCommand(s streams) *cobra.Command {
	return &cobra.Command{Use: "parse [FILE]", Short: "Read what trtexec printed, write it as JSON", Args: cobra.MaximumNArgs(1),
		Long:    "Reads the output of trtexec, of TensorRT 5 to 10, from FILE or standard input. What it did not print is absent.",
		Example: "  trtexec --onnx=model.onnx --fp16 | skein-agent engine parse | jq .latency.median_ms",
		RunE: func(_ *cobra.Command, args []string) error {
			return withInput(s.in, args, func(in io.Reader) error {
				r, err := engine.Parse(in)
				if err != nil {
					return err
				}
				enc := json.NewEncoder(s.out)
				enc.SetIndent("", "  ")
				return enc.Encode(r)
			})
		}}
}

func engineExplainCommand(s streams) *cobra.Command {
	var output string
	c := &cobra.Command{Use: "explain [FILE]", Short: "Say in plain words why an engine does not load or build", Args: cobra.MaximumNArgs(1),
		Long:    "Reads a log of trtexec, of a server or an error text from FILE or standard input. It ends with 1 when nothing in it is known.",
		Example: "  skein-agent engine explain server.log\n  skein-agent logs | skein-agent engine explain -o json",
		RunE: func(_ *cobra.Command, args []string) error {
			return withInput(s.in, args, func(in io.Reader) error { return explainEngine(s.out, in, output) })
		}}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

func explainEngine(out io.Writer, in io.Reader, output string) error {
	all, err := engine.Explain(in)
	if err != nil {
		return err
	}
	if output == "json" {
		if all == nil {
			all = []engine.Finding{}
		}
		return json.NewEncoder(out).Encode(all)
	}
	if len(all) == 0 {
		return fmt.Errorf("no error of TensorRT that is known is in it")
	}
	for _, f := range all {
		word := "error"
		if f.Warning {
			word = "warning"
		}
		fmt.Fprintf(out, "%s: %s\n  do:   %s\n  said: %s\n", word, f.Message, f.Advice, f.Line)
	}
	return nil
}

// withInput opens the file that is named, or takes standard input.
func withInput(in io.Reader, args []string, f func(io.Reader) error) error {
	if len(args) == 0 || args[0] == "-" {
		return f(in)
	}
	file, err := os.Open(args[0])
	if err != nil {
		return fmt.Errorf("open %s: %w", args[0], err)
	}
	defer file.Close()
	return f(file)
}

// engineOptions say how the agent reaches TensorRT, nil where it is not to.
func engineOptions(o runOptions) *agent.EngineOptions {
	if o.trtexec == "" {
		return nil
	}
	return &agent.EngineOptions{Trtexec: o.trtexec, Refit: o.refit}
}
