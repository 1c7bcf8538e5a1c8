package wire

// BootChain is what a machine with two root file systems says of its start.
type BootChain struct {
	Driver     string         `cbor:"1,keyasint"`
	Version    string         `cbor:"2,keyasint,omitempty"` // of the boot firmware
	Redundancy string         `cbor:"3,keyasint"`           // armed, not-armed, unknown
	Capsule    string         `cbor:"4,keyasint"`           // none, pending, applied, failed, unknown
	Firmware   []BootSlot     `cbor:"5,keyasint,omitempty"`
	Rootfs     []BootSlot     `cbor:"6,keyasint,omitempty"`
	ESRT       []BootFirmware `cbor:"7,keyasint,omitempty"`
	// Traps are why an update of the operating system would fail.
	Traps []BootTrap `cbor:"8,keyasint,omitempty"`
}

// BootSlot is one slot. Retries is -1 when the firmware does not tell.
type BootSlot struct {
	Number  uint8  `cbor:"1,keyasint"`
	Status  string `cbor:"2,keyasint"` // normal, unbootable, unknown
	Retries int8   `cbor:"3,keyasint"`
	Current bool   `cbor:"4,keyasint,omitempty"` // it runs
	Active  bool   `cbor:"5,keyasint,omitempty"` // it is to start next
}

// BootFirmware is one entry of the firmware's table (ESRT).
type BootFirmware struct {
	Class     string `cbor:"1,keyasint"`
	Version   uint64 `cbor:"2,keyasint"`
	Lowest    uint64 `cbor:"3,keyasint,omitempty"`
	Attempted uint64 `cbor:"4,keyasint,omitempty"`
	Status    uint64 `cbor:"5,keyasint,omitempty"` // of the last attempt, 0 is success
}

// BootTrap is one known trap, with its repair.
type BootTrap struct {
	Name    string `cbor:"1,keyasint"`
	Problem string `cbor:"2,keyasint"`
	Repair  string `cbor:"3,keyasint"`
}

// AgentSlots say which binary of the agent runs.
type AgentSlots struct {
	Version  string `cbor:"1,keyasint"`
	Active   string `cbor:"2,keyasint,omitempty"` // factory, a, b; empty without a supervisor
	Previous string `cbor:"3,keyasint,omitempty"`
	Digest   []byte `cbor:"4,keyasint,omitempty"` // of the binary that runs, when it came with a release
	// Trial is the slot of a new binary that has to show itself.
	Trial     string `cbor:"5,keyasint,omitempty"`
	TriesLeft uint8  `cbor:"6,keyasint,omitempty"`
	CheckedIn bool   `cbor:"7,keyasint,omitempty"`
	// Failure is why the last trial did not succeed.
	Failure string `cbor:"8,keyasint,omitempty"`
}
