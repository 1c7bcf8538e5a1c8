package broker

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	refused    *prometheus.CounterVec
	unstored   prometheus.Counter
	droppedOut prometheus.Counter
	paced      prometheus.Counter
	slowed     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, b *Broker) *metrics {
	m := &metrics{
		refused:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "skein_broker_refused_total", Help: "What devices were refused, by reason."}, []string{"reason"}),
		unstored:   prometheus.NewCounter(prometheus.CounterOpts{Name: "skein_broker_unstored_total", Help: "Messages not acknowledged because they could not be stored."}),
		droppedOut: prometheus.NewCounter(prometheus.CounterOpts{Name: "skein_broker_dropped_total", Help: "Messages to devices dropped by a full queue."}),
		paced:      prometheus.NewCounter(prometheus.CounterOpts{Name: "skein_broker_paced_total", Help: "Connections that waited for the accept limit."}),
		slowed:     prometheus.NewCounter(prometheus.CounterOpts{Name: "skein_broker_slowed_total", Help: "Messages that waited because their device sends too fast."}),
	}
	info := b.server.Info
	read := func(name, help string, v *int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "skein_broker_" + name, Help: help}, func() float64 { return float64(atomic.LoadInt64(v)) })
	}
	reg.MustRegister(m.refused, m.unstored, m.droppedOut, m.paced, m.slowed,
		read("sessions", "Devices with a session.", &info.ClientsConnected),
		read("messages_received", "Messages received since start.", &info.MessagesReceived),
		read("messages_sent", "Messages sent since start.", &info.MessagesSent),
		read("inflight", "Messages that wait for an acknowledgement.", &info.Inflight))
	return m
}
