package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// meters counts requests as they happen and the cluster's records when someone asks.
type meters struct {
	s        *server
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	panics   prometheus.Counter

	mu  sync.Mutex
	rev uint64 // of the view that was tallied last
	sum *tally
}

func newMeters(r prometheus.Registerer, s *server) (*meters, error) {
	m := &meters{
		s: s,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gantry_http_requests_total", Help: "Requests answered by the API.",
		}, []string{"method", "route", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gantry_http_request_duration_seconds", Help: "Time to answer a request, streams included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30},
		}, []string{"method", "route"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gantry_http_panics_total", Help: "Requests that ended in a mistake of the server.",
		}),
	}
	own := []prometheus.Collector{
		m.requests, m.duration, m.panics, m,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	}
	for _, c := range own {
		var already prometheus.AlreadyRegisteredError
		if err := r.Register(c); err != nil && !errors.As(err, &already) {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// request counts one answer. Methods that no route takes are counted as one, so that clients cannot make up series.
func (m *meters) request(method, route string, status int, took time.Duration) {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete:
	default:
		method = "other"
	}
	m.requests.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
	m.duration.WithLabelValues(method, route).Observe(took.Seconds())
}

func (s *server) metrics(context.Context, *none) (*huma.StreamResponse, error) {
	h := promhttp.HandlerFor(s.Gather, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
	return streamed(func(w http.ResponseWriter, r *http.Request) error {
		h.ServeHTTP(w, r)
		return nil
	}), nil
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	appsDesc        = desc("gantry_apps", "Apps.")
	instancesDesc   = desc("gantry_instances", "Instances that are kept, by phase.", "phase")
	healthyDesc     = desc("gantry_instances_healthy", "Wanted instances that run, are ready and fail no check.")
	deploymentsDesc = desc("gantry_deployments", "Deployments that are kept, by state.", "state")
	nodesDesc       = desc("gantry_nodes", "Nodes, by state.", "state")
	nodeCPUsDesc    = desc("gantry_node_capacity_cpus", "Cores that instances may take.", "node")
	nodeMemoryDesc  = desc("gantry_node_capacity_memory_bytes", "Memory that instances may take.", "node")
	takenCPUsDesc   = desc("gantry_node_reserved_cpus", "Cores reserved by instances.", "node")
	takenMemoryDesc = desc("gantry_node_reserved_memory_bytes", "Memory reserved by instances.", "node")
	usedCPUDesc     = desc("gantry_node_cpu_seconds_total", "Processor time used on the node.", "node")
	usedMemoryDesc  = desc("gantry_node_memory_bytes", "Memory used on the node.", "node")
	instCPUDesc     = desc("gantry_instance_cpu_seconds_total", "Processor time used since start.", "app", "instance", "node")
	instMemoryDesc  = desc("gantry_instance_memory_bytes", "Working set.", "app", "instance", "node")
	instLimitDesc   = desc("gantry_instance_memory_limit_bytes", "Memory limit.", "app", "instance", "node")
	allDescs        = []*prometheus.Desc{
		appsDesc, instancesDesc, healthyDesc, deploymentsDesc, nodesDesc, nodeCPUsDesc, nodeMemoryDesc, takenCPUsDesc,
		takenMemoryDesc, usedCPUDesc, usedMemoryDesc, instCPUDesc, instMemoryDesc, instLimitDesc,
	}
)

// Describe implements prometheus.Collector.
func (m *meters) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range allDescs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *meters) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	v := m.s.Store.View()
	t := m.tally(v)
	gauge(appsDesc, float64(v.AppCount()))
	gauge(healthyDesc, float64(t.healthy))
	for p, n := range t.phases {
		gauge(instancesDesc, float64(n), string(p))
	}
	for st, n := range t.deployments {
		gauge(deploymentsDesc, float64(n), string(st))
	}
	for st, n := range t.nodes {
		gauge(nodesDesc, float64(n), string(st))
	}
	for n := range v.Nodes() {
		id, used := string(n.ID), t.used[n.ID]
		gauge(nodeCPUsDesc, n.Capacity.CPUs.Cores(), id)
		gauge(nodeMemoryDesc, float64(n.Capacity.Memory), id)
		gauge(takenCPUsDesc, used.CPUs.Cores(), id)
		gauge(takenMemoryDesc, float64(used.Memory), id)
	}
	m.collectUsage(ch, v)
}

// collectUsage shows what nodes say they use; those that do not answer are missing.
func (m *meters) collectUsage(ch chan<- prometheus.Metric, v state.View) {
	all, err := m.s.usage(context.Background(), v)
	if err != nil {
		return // the series are absent then, which is how Prometheus knows that
	}
	sizes := newSizes(v)
	for id, u := range all {
		node := string(id)
		show(ch, usedCPUDesc, usedMemoryDesc, u.Node, node)
		for iid, used := range u.Instances {
			i := v.Instance(iid)
			if i == nil {
				continue
			}
			labels := []string{string(i.App), string(iid), node}
			show(ch, instCPUDesc, instMemoryDesc, used, labels...)
			ch <- prometheus.MustNewConstMetric(instLimitDesc, prometheus.GaugeValue, float64(sizes.of(i).Memory), labels...)
		}
	}
}

func show(ch chan<- prometheus.Metric, cpu, memory *prometheus.Desc, u model.Usage, labels ...string) {
	ch <- prometheus.MustNewConstMetric(cpu, prometheus.CounterValue, u.CPUTime.Std().Seconds(), labels...)
	ch <- prometheus.MustNewConstMetric(memory, prometheus.GaugeValue, float64(u.Memory), labels...)
}

// tally is what one pass over all records counts.
type tally struct {
	phases      map[model.Phase]int
	healthy     int
	deployments map[model.DeploymentState]int
	nodes       map[model.NodeState]int
	used        map[model.NodeID]model.Resources
}

// tally counts the records of a view. While nothing is written it costs nothing.
func (m *meters) tally(v state.View) *tally {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sum != nil && m.rev == v.Revision() {
		return m.sum
	}
	m.sum, m.rev = countAll(v), v.Revision()
	return m.sum
}

func countAll(v state.View) *tally {
	t := &tally{
		phases: map[model.Phase]int{
			model.PhasePending: 0, model.PhaseAssigned: 0, model.PhasePreparing: 0, model.PhaseStarting: 0,
			model.PhaseRunning: 0, model.PhaseStopping: 0, model.PhaseBackoff: 0, model.PhaseStopped: 0,
		},
		deployments: map[model.DeploymentState]int{model.DeployRunning: 0, model.DeployPaused: 0},
		nodes:       map[model.NodeState]int{model.NodeReady: 0, model.NodeUnreachable: 0},
		used:        map[model.NodeID]model.Resources{},
	}
	sizes := newSizes(v)
	for i := range v.Instances() {
		if i.Status.Phase == "" {
			t.phases[model.PhasePending]++
		} else {
			t.phases[i.Status.Phase]++
		}
		if _, ok := i.HealthySince(); ok {
			t.healthy++
		}
		if i.Node != "" && !i.Over() {
			t.used[i.Node] = t.used[i.Node].Add(sizes.of(i).Resources)
		}
	}
	for d := range v.Deployments() {
		t.deployments[d.State]++
	}
	for n := range v.Nodes() {
		t.nodes[n.State]++
	}
	return t
}
