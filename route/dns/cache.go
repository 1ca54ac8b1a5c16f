package dns

import (
	"container/list"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds of how long an answer of others is kept, whatever it says.
const (
	mostKept     = time.Hour
	mostDenied   = 5 * time.Minute // that there is nothing
	leastDenied  = time.Second     // when an answer does not say how long
	cacheEntries = 10_000
	cacheBytes   = 16 << 20
)

// question is what answers are kept under.
type question struct {
	name            string // lower case
	kind, class     uint16
	secure, checked bool // DO and CD: answers differ by them
}

// cache keeps answers of others. The least used go first.
type cache struct {
	now func() time.Time

	mu    sync.Mutex
	bytes int
	index map[question]*list.Element
	order *list.List // of *kept, the last used first
}

type kept struct {
	question
	msg   *dns.Msg // never changed
	size  int
	since time.Time
	until time.Time
}

func newCache(now func() time.Time) *cache {
	return &cache{now: now, index: map[question]*list.Element{}, order: list.New()}
}

// get returns a copy of the answer to q, its times to live less by its age, or nil.
func (c *cache) get(q question) *dns.Msg {
	now := c.now()
	c.mu.Lock()
	e := c.index[q]
	if e == nil {
		c.mu.Unlock()
		return nil
	}
	k := e.Value.(*kept)
	if !now.Before(k.until) {
		c.removeLocked(e)
		c.mu.Unlock()
		return nil
	}
	c.order.MoveToFront(e)
	c.mu.Unlock()
	m := k.msg.Copy()
	age := uint32(now.Sub(k.since) / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(age, h.Ttl)
			}
		}
	}
	return m
}

// put keeps an answer for as long as it says, if it is one to keep. The cache owns m from then on.
func (c *cache) put(q question, m *dns.Msg) {
	life := lifetime(m)
	if life <= 0 {
		return
	}
	now, size := c.now(), m.Len()+200
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.index[q]; e != nil {
		c.removeLocked(e)
	}
	c.index[q] = c.order.PushFront(&kept{question: q, msg: m, size: size, since: now, until: now.Add(life)})
	c.bytes += size
	for len(c.index) > cacheEntries || c.bytes > cacheBytes {
		c.removeLocked(c.order.Back())
	}
}

func (c *cache) removeLocked(e *list.Element) {
	k := c.order.Remove(e).(*kept)
	delete(c.index, k.question)
	c.bytes -= k.size
}

// lifetime returns how long an answer may be kept: the least of its times to live; for one that says that there is nothing,
// as long as the zone's SOA says (RFC 2308).
func lifetime(m *dns.Msg) time.Duration {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	life := mostKept
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				life = min(life, time.Duration(h.Ttl)*time.Second)
			}
		}
	}
	if len(m.Answer) > 0 && m.Rcode == dns.RcodeSuccess {
		return life
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(life, time.Duration(soa.Minttl)*time.Second, mostDenied)
		}
	}
	return min(life, leastDenied)
}
