package scenario

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/tools/txtar"
)

const (
	maxFile = 1 << 20
	// inArchive is the file of a txtar archive that holds the script.
	inArchive = "scenario"
)

// ReadFile reads a script: a plain file, or a txtar archive (*.txtar) whose
// file "scenario" is the script and whose comment says what it shows.
func ReadFile(path string) (*Script, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%w: %s has %d bytes, limit %d", ErrSyntax, path, len(text), maxFile)
	}
	if filepath.Ext(path) == ".txtar" {
		if text, err = extract(text); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	s, err := Parse(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// extract returns the script of an archive, with so many empty lines before it
// that errors and expectations name the lines of the archive.
func extract(archive []byte) ([]byte, error) {
	a := txtar.Parse(archive)
	var names []string
	for _, f := range a.Files {
		names = append(names, f.Name)
	}
	if !slices.Equal(names, []string{inArchive}) {
		return nil, fmt.Errorf("%w: the archive holds the files %q: want one, %q", ErrSyntax, names, inArchive)
	}
	before := bytes.Count(a.Comment, []byte("\n")) + 1 // the file's own marker
	return append(bytes.Repeat([]byte("\n"), before), a.Files[0].Data...), nil
}
