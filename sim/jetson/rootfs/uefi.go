package rootfs

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/skein-fleet/skein/sim/jetson"
)

const (
	vendorGUID = "781e084c-a330-417c-b678-38e696380cb9"
	globalGUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
	efivars    = "sys/firmware/efi/efivars/"
)

// uefi are the variables of a board whose two root file systems are in use.
func (b Board) uefi(f map[string]string) {
	for name, v := range Variables(jetson.NewBootChain(b.JetPack.L4T)) {
		f[efivars+name] = v
	}
	f["sys/firmware/efi/esrt/entries/entry0/fw_class"] = "bf0d4599-20d4-414e-b2c5-3595b1cda402\n"
	f["sys/firmware/efi/esrt/entries/entry0/fw_version"] = "2359300\n"
}

// Variables are the UEFI variables of a boot chain by file name: four bytes of
// attributes, then the value.
func Variables(c *jetson.BootChain) map[string]string {
	out := map[string]string{}
	set := func(name, guid string, v byte) { out[name+"-"+guid] = string([]byte{7, 0, 0, 0, v, 0, 0, 0}) }
	level, indications := byte(0), byte(0)
	if c.Armed {
		level = 1
	}
	if c.Capsule {
		indications = 4
	}
	set("RootfsRedundancyLevel", vendorGUID, level)
	set("OsIndications", globalGUID, indications)
	for n, s := range c.Slots {
		status := byte(0)
		if s.Unbootable {
			status = 0xff
		}
		letter := string("AB"[n])
		set("RootfsStatusSlot"+letter, vendorGUID, status)
		set("RootfsRetryCount"+letter, vendorGUID, byte(s.Retries))
	}
	return out
}

// SetVariables writes the variables of a boot chain into a tree that has them.
func SetVariables(dir string, c *jetson.BootChain) error {
	for name, v := range Variables(c) {
		path := filepath.Join(dir, efivars, name)
		if _, err := os.Stat(path); err != nil {
			return nil // cboot
		}
		if err := os.WriteFile(path, []byte(v), 0o644); err != nil {
			return fmt.Errorf("write a UEFI variable of the board: %w", err)
		}
	}
	return nil
}
