package main

import (
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/ota/trust"
)

func (a *app) trustCmd() *cobra.Command {
	var dev bool
	var domain string
	initCmd := &cobra.Command{
		Use: "init DIR", Short: "make keys and the first signed metadata", Args: args(cobra.ExactArgs(1)),
		Long: `Makes root, targets, snapshot, timestamp and director keys and the first TUF metadata in DIR.
With --dev all keys lie in that folder, which is right for a laptop and a lab, and for nothing
else: whoever reads the folder can sign anything. skeind does the same at its first start when
its data folder has no trust yet; to bring your own, copy DIR to DATA/trust before that.`,
		Example: "  skein trust init --dev ./trust --domain factory.example",
		RunE: func(_ *cobra.Command, args []string) error {
			if !dev {
				return usageError{errors.New("give --dev: only all keys in one folder is supported")}
			}
			s, err := trust.InitDev(args[0], domain, time.Now())
			if err != nil {
				return err
			}
			if a.table() {
				_, err := io.WriteString(a.env.stdout, layOut(func(w io.Writer) { trustTable(w, args[0], s) }, 0))
				return err
			}
			b, err := json.Marshal(map[string]any{"dir": s.Dir, "domain": s.Domain, "root_digest": s.RootDigest, "keys": s.Keys})
			if err != nil {
				return err
			}
			return a.printJSON(b)
		},
	}
	initCmd.Flags().BoolVar(&dev, "dev", false, "development: all keys in one folder")
	initCmd.Flags().StringVar(&domain, "domain", "skein.local", "trust domain of the fleet")
	return group("trust", "keys and signed metadata", "  skein trust init --dev ./trust", initCmd)
}

func trustTable(w io.Writer, dir string, s *trust.Summary) {
	row(w, "folder", dir)
	row(w, "domain", s.Domain)
	row(w, "root", s.RootDigest)
	for _, k := range s.Keys {
		row(w, "key", k)
	}
	row(w, "warning", "all keys lie in one folder: for development only")
}
