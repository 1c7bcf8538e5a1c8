package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxNesting of metadata; honest files have less than ten levels.
const maxNesting = 64

var errTwice = errors.New("readers would differ in what it says")

// once checks that no key of a JSON document stands twice: readers differ in
// which of the two they take, and the signature is over what one of them took.
// Names of fields do not differ by case alone either, since encoding/json
// takes one for the other; names of files and the like may. What is no JSON is
// for the parser to refuse.
func once(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	err := onceIn(d, "", 0)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = fmt.Errorf("%w: bytes after the document", errTwice)
		}
	}
	if errors.Is(err, errTwice) {
		return err
	}
	return nil
}

// byName are the objects whose keys are names and not fields.
var byName = map[string]bool{"targets": true, "meta": true, "keys": true, "roles": true, "hashes": true, "annotations": true}

func onceIn(d *json.Decoder, under string, depth int) error {
	if depth > maxNesting {
		return fmt.Errorf("%w: deeper than %d", errTwice, maxNesting)
	}
	token, err := d.Token()
	if err != nil {
		return err
	}
	switch token {
	case json.Delim('['):
		for d.More() {
			if err := onceIn(d, "", depth+1); err != nil {
				return err
			}
		}
	case json.Delim('{'):
		seen := map[string]bool{}
		for d.More() {
			token, err := d.Token()
			if err != nil {
				return err
			}
			key := fmt.Sprint(token)
			name := key
			if !byName[under] {
				name = strings.ToLower(strings.ToUpper(key)) // as encoding/json folds
			}
			if seen[name] {
				return fmt.Errorf("%w: key %.40q stands twice", errTwice, key)
			}
			seen[name] = true
			if err := onceIn(d, key, depth+1); err != nil {
				return err
			}
		}
	default:
		return nil
	}
	_, err = d.Token() // the closing delimiter
	return err
}
