package process

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func full() *config {
	return &config{
		attempt: 7, limit: 1 << 40, boot: "b", isolate: true, tty: true, sandbox: "/s", logs: "/l", logSize: 5, logKeep: 2,
		who: &identity{uid: 1<<32 - 2, gid: 3, groups: []uint32{4, 5}}, dir: "/d",
		args: []string{"a", "", "b=c", "line\nbreak"}, env: map[string]string{"E": "", "F": "x=y"},
		binds: []bind{{"/x", "/y", true}, {"/x=", "z", false}}, tasks: []string{"/t1", "/t2"}, cgroup: "/c", oom: "/o", peak: "/p",
	}
}

func TestConfigIsReadAsWritten(t *testing.T) {
	want := full()
	got, err := decode(want.encode())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decode(encode(c)) is\n%+v, %v, want\n%+v", got, err, want)
	}
}

// A file cut off anywhere, as by a power cut, is noticed.
func TestCutConfigIsDamaged(t *testing.T) {
	text := full().encode()
	for n := range text {
		if c, err := decode(text[:n]); !errors.Is(err, errDamaged) {
			t.Fatalf("the first %d bytes of %q give %+v, %v", n, text, c, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(full().encode())
	f.Add([]byte("ro=\x00at=0\x00end=\x00"))
	f.Add([]byte("at=/x\x00end=1\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := decode(text)
		if err != nil {
			return
		}
		again, err := decode(c.encode())
		if err != nil || !reflect.DeepEqual(again.args, c.args) || !reflect.DeepEqual(again.env, c.env) {
			t.Errorf("%q gives %+v, then %+v, %v", text, c, again, err)
		}
	})
}

func FuzzParseValues(f *testing.F) {
	f.Add("code=1\ntime=2\n\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		if v, err := parseValues(text); err == nil && (v["time"] != 0) && !strings.Contains(text, "time") {
			t.Errorf("%q gives %v", text, v)
		}
	})
}

func TestParseStat(t *testing.T) {
	line := "12 (a) b)) S 1 12 12 0 -1 4194560 96 0 0 0 3 4 5 6 20 0 1 0 100 2000 50 18446744073709551615 1 1"
	if cpu, mem := parseStat([]byte(line)); cpu != 18*tick || mem <= 0 {
		t.Errorf("parseStat returned %v, %v", cpu, mem)
	}
	for n := range line {
		parseStat([]byte(line[:n])) // must not panic
	}
}
