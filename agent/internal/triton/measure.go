package triton

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
)

// maxMetrics bounds what of the metrics is read.
const maxMetrics = 4 << 20

// Measure reads the statistics of the model and what the metrics have besides.
func (Dialect) Measure(ctx context.Context, g *serving.Generation, s serving.Served, m *runtime.Server) error {
	api := kserve.Client{URL: "http://" + g.Ports.HTTP, HTTP: g.Client}
	stats, err := api.Statistics(ctx, s.Model, s.Version)
	if err != nil {
		return fmt.Errorf("read statistics: %w", err)
	}
	for _, st := range stats {
		m.Requests, m.Failed = m.Requests+st.Times.Success.Count, m.Failed+st.Times.Fail.Count
		m.Queue, m.Compute = mean(st.Times.Queue), mean(st.Times.Compute)
	}
	return scrape(ctx, g, s.Model, m)
}

func mean(t kserve.Times) time.Duration {
	if t.Count == 0 {
		return 0
	}
	return time.Duration(t.NS / t.Count)
}

func scrape(ctx context.Context, g *serving.Generation, model string, m *runtime.Server) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.Ports.Metrics+"/metrics", nil)
	if err != nil {
		return err
	}
	resp, err := g.Client.Do(req)
	if err != nil {
		return fmt.Errorf("read metrics: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("read metrics: %s", resp.Status)
	}
	return readMetrics(io.LimitReader(resp.Body, maxMetrics), model, m)
}

// readMetrics takes what it knows from the Prometheus text.
func readMetrics(r io.Reader, model string, m *runtime.Server) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			continue
		}
		name, labels, _ := strings.Cut(line[:at], "{")
		switch {
		case name == "nv_gpu_memory_used_bytes":
			m.GPUMemory += int64(value)
		case name == "nv_inference_pending_request_count" && strings.Contains(labels, `model="`+model+`"`):
			m.Pending += int(value)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read metrics: %w", err)
	}
	return nil
}
