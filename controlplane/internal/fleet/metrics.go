package fleet

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	ingest      *prometheus.HistogramVec
	dropped     *prometheus.CounterVec
	noticed     *prometheus.CounterVec
	events      *prometheus.CounterVec
	sent        *prometheus.CounterVec
	generations prometheus.Counter
	slowDown    prometheus.Counter
	flushed     prometheus.Counter
	online      prometheus.Gauge
	converging  prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "skein_fleet_" + name, Help: help})
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "skein_fleet_" + name, Help: help}, labels)
	}
	m := &metrics{
		ingest: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "skein_fleet_ingest_seconds",
			Help: "Time from the arrival of a message of a device to its acknowledgement.", Buckets: prometheus.ExponentialBuckets(25e-6, 2, 16)}, []string{"kind"}),
		dropped:     vec("dropped_total", "Messages of devices that were not used, by reason.", "reason"),
		noticed:     vec("noticed_total", "Events that the control plane made about devices, by kind.", "kind"),
		events:      vec("events_total", "Events of devices, by kind.", "kind"),
		sent:        vec("sent_total", "Messages to devices, by kind and outcome.", "kind", "outcome"),
		generations: counter("generations_total", "Desired states made."),
		slowDown:    counter("slow_down_total", "Devices asked to slow down."),
		flushed:     counter("flushed_total", "Twins written behind."),
		online:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "skein_fleet_online", Help: "Devices online."}),
		converging:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "skein_fleet_converging", Help: "Devices online that do not hold what is wanted."}),
	}
	reg.MustRegister(m.ingest, m.dropped, m.noticed, m.events, m.sent, m.generations, m.slowDown, m.flushed, m.online, m.converging)
	return m
}
