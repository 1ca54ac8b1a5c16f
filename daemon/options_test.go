package daemon

import (
	"strings"
	"testing"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state/etcd"
)

// What cannot hold together is refused by the name of the flag.
func TestOptionsThatAreRefused(t *testing.T) {
	for want, change := range map[string]func(*Options){
		"":                 func(*Options) {},
		"--reserve-cpus":   func(o *Options) { o.NodeCPUs, o.Keep.CPUs = 1000, 1000 },
		"--reserve-memory": func(o *Options) { o.NodeMemory, o.Keep.Memory = model.GiB, model.GiB },
		"--pool":           func(o *Options) { o.Node.Pool = "No" },
		"--no-gpus":        func(o *Options) { o.Node = model.Declaration{NoGPUs: true, GPUs: []model.GPUDevice{{ID: "0"}}} },
	} {
		o := DefaultOptions()
		o.DataDir = "/d"
		change(&o)
		err := o.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want it to begin with %q", err, want)
		}
	}
}

// An external etcd that cannot be reached safely, or at all, is refused by the name of the flag.
func TestExternalEtcdThatIsRefused(t *testing.T) {
	for want, e := range map[string]etcd.External{
		"":                               {},
		"--etcd-endpoints is missing":    {Prefix: "/a"},
		"--etcd-endpoints: http://":      {Endpoints: []string{"http://10.0.0.7:2379"}},
		"--etcd-cert and etcd-key are":   {Endpoints: []string{"https://10.0.0.7:2379"}},
		"--etcd-cacert: open /not/there": {Endpoints: []string{"https://127.0.0.1:2379"}, CA: "/not/there"},
	} {
		o := DefaultServerOptions()
		o.DataDir, o.Listen, o.Advertise, o.Etcd = "/d", "127.0.0.1:7070", "127.0.0.1:7070", e
		if err := o.Validate(); (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want it to begin with %q", err, want)
		}
	}
}

// What is wrong with an external etcd is a sentence, the worst first.
func TestEtcdWhy(t *testing.T) {
	member := func(name string, answers bool) etcd.MemberStatus {
		return etcd.MemberStatus{Member: etcd.Member{Name: name}, Answers: answers}
	}
	well := etcd.Status{Leader: "a", Members: []etcd.MemberStatus{member("a", true), member("b", true), member("c", true)}}
	for want, change := range map[string]func(*etcd.Status) int{
		"":                func(*etcd.Status) int { return 3 },
		"does not answer": func(*etcd.Status) int { return 0 },
		"has no leader, and 1 of its 3 members answer": func(st *etcd.Status) int { st.Leader = ""; return 1 },
		"is full and takes no changes":                 func(st *etcd.Status) int { st.Alarms = []string{"NOSPACE 1f"}; return 2 },
		"is corrupt":                                   func(st *etcd.Status) int { st.Alarms = []string{"CORRUPT 1f"}; return 3 },
		"1 of 3 members of the external etcd do not answer: c": func(st *etcd.Status) int {
			st.Members = []etcd.MemberStatus{member("a", true), member("b", true), member("c", false)}
			return 2
		},
	} {
		st := well
		if got := etcdWhy(&st, change(&st)); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q, want %q in it", got, want)
		}
	}
}
