package localapi

import (
	"time"

	"github.com/skein-fleet/skein/proto/wire"
)

// Status is what an agent says of itself.
type Status struct {
	DeviceID, Tenant, Name, Serial, Hardware, Target, Agent string
	Labels                                                  map[string]string
	CertificateNotAfter                                     time.Time

	Link      string // connected, connecting or offline
	LinkError string
	LinkSince time.Time
	LastSeen  time.Time // last acknowledged message

	Held          wire.Generation
	Desired       string // release digest, empty for none
	DesiredName   string // name@version
	Running       string
	RunningName   string
	Rollout       string
	Phase         wire.Phase
	Step          string
	FailureClass  string
	Failure       string
	ParamsDigest  []byte
	DesiredParams []byte
	Conditions    []wire.Condition
	Journal       []wire.StepEntry
	Boot          uint64
	ClockDoubtful bool
	TrustedTime   time.Time
	Uptime        time.Duration
	SpoolBytes    int64
	SpoolFrames   int64
	SpoolDropped  int64
	BytesFetched  int64              // for the last update
	Sources       []wire.SourceBytes // by which way
	Policy        *wire.PolicyState  // nil: no policy binds
	Power         *wire.Power        // nil: the board does not tell
	Servers       []wire.Server      // of models
	Tap           *wire.Tap          // nil: there is none
	Summary       string             // one sentence
	Reasons       []string           // what holds something up, now
}
