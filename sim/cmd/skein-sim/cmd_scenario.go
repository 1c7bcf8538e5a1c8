package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/skein-fleet/skein/sim/plane"
	"github.com/skein-fleet/skein/sim/scenario"
	"github.com/skein-fleet/skein/sim/scenario/play"
)

// scenarioResult is what became of one file.
type scenarioResult struct {
	File string `json:"file"`
	*play.Result
	Error string `json:"error,omitempty"`
}

// runScenarios runs each file; one that fails does not keep the next from
// running.
func (a *app) runScenarios(ctx context.Context, o runOptions) (err error) {
	scripts, err := readScripts(o.scenarios)
	if err != nil {
		return usageError{err}
	}
	dir, remove, err := dataDir(o.data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	fmt.Fprintln(a.stderr, "training the model of the scenarios")
	shop, err := play.NewWorkshop(ctx, o.digits)
	if err != nil {
		return err
	}
	events := a.stderr
	if o.events != "" {
		f, cerr := os.Create(o.events)
		if cerr != nil {
			return fmt.Errorf("open the log of events: %w", cerr)
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		events = f
	}
	var results []scenarioResult
	var failed error
	for i, script := range scripts {
		fmt.Fprintf(events, "# %s\n", o.scenarios[i])
		po := play.Options{
			Dir: filepath.Join(dir, "scenario-"+strconv.Itoa(i+1)), Workshop: shop, Events: events, Logger: a.logger(), Skeind: o.command, Stretch: o.stretch,
		}
		if o.tune != nil {
			o.tune(&po)
		}
		r, err := play.Run(ctx, script, po)
		result := scenarioResult{File: o.scenarios[i], Result: r}
		if err == nil {
			if bad := r.Err(); bad != nil {
				err = expectationError{bad}
			}
		}
		if err != nil {
			result.Error = err.Error()
			failed = errors.Join(failed, fmt.Errorf("%s: %w", o.scenarios[i], err))
		}
		results = append(results, result)
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(failed, a.emit(results, func(w io.Writer) error { return scenarioText(w, results) }))
}

// command starts skeind for scenarios that kill it.
func (o *runOptions) command() ([]string, error) {
	if o.skeind != "" {
		return []string{o.skeind}, nil
	}
	path, err := plane.FindSkeind()
	return []string{path}, err
}

func readScripts(files []string) ([]*scenario.Script, error) {
	var out []*scenario.Script
	for _, file := range files {
		s, err := scenario.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--scenario: %w", err)
		}
		out = append(out, s)
	}
	return out, nil
}

func scenarioText(w io.Writer, results []scenarioResult) error {
	for _, r := range results {
		word := "ok    "
		if r.Error != "" {
			word = "FAILED"
		}
		held, seconds := 0, 0.0
		var of int
		if r.Result != nil {
			seconds, of = r.Seconds, len(r.Verdicts)
			for _, v := range r.Verdicts {
				if v.Held {
					held++
				}
			}
		}
		if _, err := fmt.Fprintf(w, "%s  %d of %d expectations held, %v  %s\n", word, held, of, time.Duration(seconds*float64(time.Second)).Round(time.Millisecond), r.File); err != nil {
			return err
		}
	}
	return nil
}
