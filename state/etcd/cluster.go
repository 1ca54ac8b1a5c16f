package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Errors of membership. They come wrapped in a sentence.
var (
	// ErrMember says that there is no such member, or not one like that.
	ErrMember = errors.New("no such server")
	// ErrQuorum says that the cluster could not go on after what was asked.
	ErrQuorum = errors.New("a majority of the servers would be missing")
	// ErrRemoved says that this server was removed from the cluster. Its data directory is of no more use.
	ErrRemoved = errors.New("this server was removed from the cluster")
	// ErrNotOurs says that an external etcd is its owner's to change.
	ErrNotOurs = errors.New("the external etcd is changed by those who run it")
)

// Waits of what the members need time for.
const (
	probeTime  = time.Second
	retryEvery = 250 * time.Millisecond
)

// Member is one server's share of etcd.
type Member struct {
	ID      string `json:"id"`
	Name    string `json:"name,omitempty"` // none while it has not started
	Peer    string `json:"peer,omitempty"` // host:port, for the other members
	Addr    string `json:"addr,omitempty"` // host:port of the server's API
	Learner bool   `json:"learner"`        // it is told everything, and has no vote yet
	Leader  bool   `json:"leader"`         // etcd's, and so Gantry's as a rule
	Self    bool   `json:"self"`
}

// Status is the state of etcd as one server sees it.
type Status struct {
	Members  []MemberStatus `json:"members"`          // of an external etcd, its own
	Leader   string         `json:"leader,omitempty"` // the member that leads, none while there is no majority
	Term     uint64         `json:"term"`             // of etcd's own elections
	Applied  uint64         `json:"applied"`          // log entries that this member has brought in
	Revision uint64         `json:"revision"`
	Lag      time.Duration  `json:"lag"`
	Size     int64          `json:"size"`  // bytes of this member's database file
	Used     int64          `json:"used"`  // of them that hold anything
	Quota    int64          `json:"quota"` // zero where an external etcd does not tell
	Alarms   []string       `json:"alarms,omitempty"`
	Parked   string         `json:"parked,omitempty"` // why this member rests
	External bool           `json:"external"`

	Stored  model.Release            `json:"stored,omitzero"` // the release whose records are written
	Next    model.Release            `json:"next,omitzero"`   // that of the newest server, to which Stored will be raised
	Waits   []string                 `json:"waits,omitempty"` // servers that are to be upgraded before
	Servers map[string]ServerRelease `json:"servers,omitempty"`
}

// ServerRelease is the version of a server, when it started last.
type ServerRelease struct {
	Release model.Release `json:"release"`
	Build   string        `json:"build,omitempty"` // its name for people
}

// MemberStatus is a member and whether it answers this server.
type MemberStatus struct {
	Member
	Answers bool `json:"answers"`
}

func memberID(id uint64) string { return strconv.FormatUint(id, 16) }

// Members returns all members, as a majority knows them. With an external etcd, they are its.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	l := s.link.Load()
	resp, err := l.client.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list members: %w", explain(err))
	}
	return s.members(l, resp.Members), nil
}

func (s *Store) members(l *link, all []*pb.Member) []Member {
	var self, leader uint64
	if l.member != nil {
		self, leader = uint64(l.member.Server.MemberID()), uint64(l.member.Server.Leader())
	}
	out := make([]Member, len(all))
	for i, m := range all {
		out[i] = Member{
			ID: memberID(m.ID), Name: m.Name, Peer: hosts(m.PeerURLs), Addr: hosts(m.ClientURLs),
			Learner: m.IsLearner, Leader: m.ID == leader, Self: m.ID == self,
		}
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name+a.ID, b.Name+b.ID) })
	return out
}

func hosts(urls []string) string {
	if len(urls) == 0 {
		return ""
	}
	_, host, _ := strings.Cut(urls[0], "://")
	return host
}

// member returns the member of that name or id.
func (s *Store) member(ctx context.Context, name string) (Member, []Member, error) {
	all, err := s.Members(ctx)
	if err != nil {
		return Member{}, nil, err
	}
	for _, m := range all {
		if m.Name == name || m.ID == name {
			return m, all, nil
		}
	}
	return Member{}, all, fmt.Errorf("%w: %q", ErrMember, name)
}

// own returns the link of a member that runs.
func (s *Store) own() (*link, error) {
	l := s.link.Load()
	if l.member == nil {
		return nil, ErrNotOurs
	}
	return l, nil
}

// AddMember lets the server that others will call at peer, host:port, in as a learner, and returns what it is to be opened with as
// Config.Join. Asked again for one that has not started yet, it answers the same. It waits, until ctx ends, for the members
// to have been together long enough to take one more.
func (s *Store) AddMember(ctx context.Context, name, peer string) (join string, err error) {
	l, err := s.own()
	if err != nil {
		return "", err
	}
	if s.cfg.Peer == nil {
		return "", errors.New("this server listens for no others: start it as a server of a cluster")
	}
	all, err := s.Members(ctx)
	if err != nil {
		return "", err
	}
	url := "https://" + peer
	for _, m := range all {
		switch {
		case m.Peer == peer && m.Name == "":
			return joining(all, name, peer), nil
		case m.Name == name:
			return "", fmt.Errorf("a server named %q is a member already, at %s: choose another name, or remove it first", name, m.Peer)
		case m.Peer == peer:
			return "", fmt.Errorf("%s is the address of the member %q already: remove it first", peer, m.Name)
		}
	}
	for {
		resp, err := l.client.MemberAddAsLearner(ctx, []string{url})
		switch {
		case err == nil:
			return joining(s.members(l, resp.Members), name, peer), nil
		case !errors.Is(err, rpctypes.ErrUnhealthy) && !errors.Is(err, rpctypes.ErrTooManyLearners):
			return "", fmt.Errorf("add a server: %w", explain(err))
		}
		select {
		case <-time.After(retryEvery):
		case <-ctx.Done():
			return "", fmt.Errorf("add a server: the members are not all well: %w", err)
		}
	}
}

// joining returns the members in etcd's words; the new one is at peer.
func joining(all []Member, name, peer string) string {
	var parts []string
	for _, m := range all {
		switch {
		case m.Peer == peer:
			m.Name = name
		case m.Name == "":
			m.Name = "member-" + m.ID
		}
		parts = append(parts, m.Name+"=https://"+m.Peer)
	}
	return strings.Join(parts, ",")
}

// Promote gives a learner its vote, once it has caught up. A server that joins does that for itself.
func (s *Store) Promote(ctx context.Context, name string) error {
	if _, err := s.own(); err != nil {
		return err
	}
	m, _, err := s.member(ctx, name)
	if err != nil {
		return err
	}
	if !m.Learner {
		return fmt.Errorf("%w: %s votes already", ErrMember, name)
	}
	return s.promote(ctx, m.ID)
}

func (s *Store) promote(ctx context.Context, id string) error {
	n, err := strconv.ParseUint(id, 16, 64)
	if err != nil {
		return fmt.Errorf("%w: %q", ErrMember, id)
	}
	last := error(nil)
	for {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := s.link.Load().client.MemberPromote(try, n)
		cancel()
		switch {
		case err == nil, errors.Is(err, rpctypes.ErrMemberNotLearner):
			return nil
		case errors.Is(err, rpctypes.ErrMemberNotFound):
			return fmt.Errorf("%w: %s", ErrRemoved, id)
		case ctx.Err() == nil:
			last = err
		}
		select {
		case <-time.After(retryEvery):
		case <-s.living.Done():
			return errClosed
		case <-ctx.Done():
			return fmt.Errorf("give a server its vote: %w", errors.Join(last, context.Cause(ctx)))
		}
	}
}

// settleIn makes the member of a server what its settings say: known at its address, and one that votes.
func (s *Store) settleIn(ctx context.Context) error {
	l := s.link.Load()
	server := l.member.Server
	want := s.cfg.Peer.url()
	if m := server.Cluster().Member(server.MemberID()); m != nil && s.cfg.Peer != nil && !slices.Equal(m.PeerURLs, []string{want.String()}) {
		if _, err := l.client.MemberUpdate(ctx, uint64(m.ID), []string{want.String()}); err != nil {
			return fmt.Errorf("tell the members of the address %s: %w", want.Host, explain(err))
		}
	}
	if server.IsLearner() {
		return s.promote(ctx, memberID(uint64(server.MemberID())))
	}
	return nil
}

// Remove takes a member out, dead or alive, unless those that would be left could not go on. A server that lives ends with
// ErrRemoved then.
func (s *Store) Remove(ctx context.Context, name string) error {
	l, err := s.own()
	if err != nil {
		return err
	}
	m, all, err := s.member(ctx, name)
	if err != nil {
		return err
	}
	if err := s.canLose(ctx, m, all); err != nil {
		return err
	}
	if m.Leader && m.Self {
		if err := l.member.Server.TryTransferLeadershipOnShutdown(); err != nil {
			return fmt.Errorf("hand leadership over: %w", explain(err))
		}
	}
	id, err := strconv.ParseUint(m.ID, 16, 64)
	if err != nil {
		return fmt.Errorf("%w: %q", ErrMember, m.ID)
	}
	_, err = l.client.MemberRemove(ctx, id)
	if errors.Is(err, rpctypes.ErrUnhealthy) || errors.Is(err, rpctypes.ErrMemberNotEnoughStarted) {
		return fmt.Errorf("%w: without %s too few members would be there, or they have been together for less than 5 s: try again", ErrQuorum, name)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, explain(err))
	}
	if _, err := l.client.Delete(ctx, serversKey+m.Name); err != nil {
		return fmt.Errorf("forget the version of %s: %w", name, explain(err))
	}
	return nil
}

// canLose reports why the cluster could not go on without m.
func (s *Store) canLose(ctx context.Context, m Member, all []Member) error {
	if m.Learner {
		return nil
	}
	voters, answer := 0, 0
	for _, other := range s.probe(ctx, all) {
		if other.ID == m.ID || other.Learner {
			continue
		}
		voters++
		if other.Answers {
			answer++
		}
	}
	need := voters/2 + 1
	switch {
	case voters == 0:
		return fmt.Errorf("%w: %s is the only server that votes", ErrQuorum, m.Name)
	case answer < need:
		return fmt.Errorf("%w: without %s, %d of the other %d servers would have to answer and %d do; bring them back or remove those first",
			ErrQuorum, m.Name, need, voters, answer)
	}
	return nil
}

// probe asks all members for a sign of life.
func (s *Store) probe(ctx context.Context, all []Member) []MemberStatus {
	out := make([]MemberStatus, len(all))
	client, err := s.prober()
	var asking sync.WaitGroup
	for i, m := range all {
		out[i] = MemberStatus{Member: m, Answers: m.Self}
		if m.Self || m.Peer == "" || err != nil {
			continue
		}
		asking.Go(func() { out[i].Answers = answers(ctx, client, m.Peer) })
	}
	asking.Wait()
	if err == nil {
		client.CloseIdleConnections()
	}
	return out
}

func (s *Store) prober() (*http.Client, error) {
	if s.cfg.Peer == nil {
		return nil, ErrNotOurs
	}
	tls, err := s.cfg.Peer.TLS.info().ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	return &http.Client{Timeout: probeTime, Transport: &http.Transport{TLSClientConfig: tls}}, nil
}

func answers(ctx context.Context, client *http.Client, peer string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+peer+"/version", nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

// MoveLeader has the member of that name lead, and so its server.
func (s *Store) MoveLeader(ctx context.Context, name string) error {
	if _, err := s.own(); err != nil {
		return err
	}
	to, all, err := s.member(ctx, name)
	switch {
	case err != nil:
		return err
	case to.Learner:
		return fmt.Errorf("%w: %s has no vote yet", ErrMember, name)
	case to.Leader:
		return nil
	case !slices.ContainsFunc(all, func(m Member) bool { return m.Leader && m.Self }):
		return fmt.Errorf("%w: only the leader can hand over; ask its server", state.ErrUnavailable)
	}
	id, err := strconv.ParseUint(to.ID, 16, 64)
	if err != nil {
		return fmt.Errorf("%w: %q", ErrMember, to.ID)
	}
	l := s.link.Load()
	if err := l.member.Server.MoveLeader(ctx, uint64(l.member.Server.MemberID()), id); err != nil {
		return fmt.Errorf("hand leadership to %s: %w", name, explain(err))
	}
	return nil
}

// Status returns what this server knows, whether or not there is a majority.
func (s *Store) Status(ctx context.Context) (Status, error) {
	l := s.link.Load()
	out := Status{Revision: s.View().Revision(), Lag: s.Lag(), External: l.member == nil}
	if l.member == nil {
		return s.statusExternal(ctx, l, out), nil
	}
	out.Quota = s.cfg.Quota
	if l.left.Load() {
		s.committing.Lock()
		defer s.committing.Unlock()
		if s.parked != nil {
			out.Parked = s.parked.Error()
		}
		return out, nil
	}
	server := l.member.Server
	var all []*pb.Member
	for _, m := range server.Cluster().Members() {
		all = append(all, &pb.Member{ID: uint64(m.ID), Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.IsLearner})
	}
	out.Members = s.probe(ctx, s.members(l, all))
	for _, m := range out.Members {
		if m.Leader {
			out.Leader = m.Name
		}
	}
	out.Term, out.Applied = server.Term(), server.AppliedIndex()
	out.Size, out.Used = server.Backend().Size(), server.Backend().SizeInUse()
	for _, a := range server.Alarms() {
		out.Alarms = append(out.Alarms, a.Alarm.String()+" "+memberID(a.MemberID))
	}
	s.describeReleases(l, &out)
	return out, nil
}
