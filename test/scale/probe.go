package scale

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// probeEvery is how often a probe asks.
const probeEvery = 10 * time.Millisecond

// probe asks the API at an even pace, however long answers take, and notes how long that was.
type probe struct {
	c    *Cluster
	http http.Client
	wg   sync.WaitGroup

	mu   sync.Mutex
	took map[string][]time.Duration
	err  error
}

func newProbe(c *Cluster) *probe {
	return &probe{c: c, took: map[string][]time.Duration{}, http: http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
}

// paths are what is asked for, in turn.
func (p *probe) path(n int) (kind, path string) {
	app := url.PathEscape(strings.TrimPrefix(string(largeApp(n/4)), "/"))
	node := p.c.Nodes[n%len(p.c.Nodes)].ID
	switch n % 4 {
	case 0:
		return "app", "/v1/apps/" + app
	case 1:
		return "apps", "/v1/apps"
	case 2:
		return "instances of a node", "/v1/instances?node=" + string(node)
	}
	return "deployments", "/v1/deployments"
}

// run asks until ctx ends.
func (p *probe) run(ctx context.Context) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case due := <-tick.C:
			kind, path := p.path(n)
			p.wg.Go(func() {
				err := p.ask(path)
				took := time.Since(due)
				p.mu.Lock()
				defer p.mu.Unlock()
				p.took[kind] = append(p.took[kind], took)
				if p.err == nil && err != nil {
					p.err = fmt.Errorf("GET %s: %w", path, err)
				}
			})
		}
	}
}

// ask gets one answer in full.
func (p *probe) ask(path string) error {
	req, err := http.NewRequest(http.MethodGet, p.c.Client.Addr()+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+string(p.c.Token))
	resp, err := p.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func (p *probe) wait() { p.wg.Wait() }

// report returns the 99th percentile of all answers in milliseconds, and notes that of each kind.
func (p *probe) report(note func(string, ...any)) (float64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []time.Duration
	for kind, took := range p.took {
		all = append(all, took...)
		note("%s: p50 %.1f ms, p99 %.1f ms of %d requests", kind, quantile(took, 0.5), quantile(took, 0.99), len(took))
	}
	note("all: p50 %.1f ms, p99 %.1f ms", quantile(all, 0.5), quantile(all, 0.99))
	return quantile(all, 0.99), p.err
}

func quantile(took []time.Duration, q float64) float64 {
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return float64(took[min(len(took)-1, int(q*float64(len(took))))]) / float64(time.Millisecond)
}
