package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// applyConfig sets the flags of a command from a JSON file. A name that is no
// flag of any command is an error; one of another command is left alone, so
// that one file serves all.
func applyConfig(cmd *cobra.Command, path string) error {
	if path == "" {
		return nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("%w: configuration: %w", errUsage, err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var values map[string]any
	if err := dec.Decode(&values); err != nil {
		return fmt.Errorf("%w: configuration %s: %w", errUsage, path, err)
	}
	if dec.More() {
		return fmt.Errorf("%w: configuration %s: more than one JSON value", errUsage, path)
	}
	for name, v := range values {
		if err := setFlag(cmd, name, v); err != nil {
			return fmt.Errorf("%w: configuration %s: %w", errUsage, path, err)
		}
	}
	return nil
}

func setFlag(cmd *cobra.Command, name string, v any) error {
	f := cmd.Flags().Lookup(name)
	if f == nil {
		for _, other := range cmd.Root().Commands() {
			if other.Flags().Lookup(name) != nil {
				return nil
			}
		}
		return fmt.Errorf("%q is no setting", name)
	}
	if f.Changed {
		return nil
	}
	var texts []string
	switch x := v.(type) {
	case string:
		texts = []string{x}
	case bool, json.Number:
		texts = []string{fmt.Sprint(x)}
	case []any:
		for _, e := range x {
			t, ok := e.(string)
			if !ok {
				return fmt.Errorf("%s: want a list of texts", name)
			}
			texts = append(texts, t)
		}
	case map[string]any:
		for k, e := range x {
			texts = append(texts, fmt.Sprintf("%s=%v", k, e))
		}
	default:
		return fmt.Errorf("%s: %v is no value for a setting", name, v)
	}
	for _, t := range texts {
		if err := cmd.Flags().Set(name, t); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
