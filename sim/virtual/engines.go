package virtual

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/plan"
	"github.com/skein-fleet/skein/sim/trtexec"
)

// engines are how the agent reaches TensorRT on a virtual Jetson, nil on other
// boards.
func (d *Device) engines() *agent.EngineOptions {
	var model *jetson.Model
	d.board.with(func(b *jetson.Board) { model = b.Model() })
	if !model.Jetson() {
		return nil
	}
	return &agent.EngineOptions{Runner: tensorRT{d.board}, Trtexec: "trtexec", Refit: []string{"refit", "{plan}", "{onnx}", "{out}"}}
}

// tensorRT runs trtexec on the board, in this process.
type tensorRT struct{ board *board }

func (t tensorRT) on() (b trtexec.Board) {
	t.board.with(func(j *jetson.Board) {
		b = trtexec.Board{Model: j.Model(), Mode: j.Mode(), TensorRT: j.Target().Attrs["trt"]}
		factor := j.LatencyFactor()
		b.Factor = func() float64 { return factor }
	})
	return b
}

// Run implements agent.EngineRunner.
func (t tensorRT) Run(ctx context.Context, argv []string, out io.Writer) (agent.EngineExit, error) {
	b := t.on()
	switch argv[0] {
	case "trtexec":
		code := trtexec.Run(ctx, b, argv[1:], out)
		if code == trtexec.ExitCrash {
			return agent.EngineExit{Code: -1, Signal: "segmentation fault"}, nil
		}
		return agent.EngineExit{Code: code}, ctx.Err()
	case "refit":
		if err := trtexec.Refit(argv[1], argv[2], argv[3]); err != nil {
			fmt.Fprintf(out, "[E] %v\n", err)
			return agent.EngineExit{Code: 1}, nil
		}
		return agent.EngineExit{}, nil
	}
	if strings.HasSuffix(argv[0], "sh") { // what is installed
		fmt.Fprintf(out, "skein-probe lib libnvinfer.so.%s\n", b.TensorRT)
		return agent.EngineExit{}, nil
	}
	return agent.EngineExit{Code: 127}, fmt.Errorf("%s: not on this board", argv[0])
}

// plans says what plans load on the board now.
func (b *board) plans() plan.Board { return trtexec.On(tensorRT{b}.on()) }
