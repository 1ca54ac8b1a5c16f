package model

import (
	"strings"
	"testing"
)

func TestParseAppID(t *testing.T) {
	long := strings.Repeat("a", MaxSegment)
	for in, want := range map[string]AppID{
		"/web": "/web", "web": "/web", "/shop/web/": "/shop/web", "//shop//web": "/shop/web", "/a/./b": "/a/b", "/a/../b": "/b",
		"/0/1-2": "/0/1-2", long: AppID("/" + long),
	} {
		if got, err := ParseAppID(in); err != nil || got != want {
			t.Errorf("ParseAppID(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, bad := range []string{
		"", "/", "..", "/Web", "/a_b", "/-a", "/a-", "/a b", "/a\x00", "/é", "/" + long + "a", strings.Repeat("/abcdefgh", 30),
	} {
		if got, err := ParseAppID(bad); err == nil {
			t.Errorf("ParseAppID(%q) = %q, want an error", bad, got)
		}
	}
	if id := AppID("/shop/web"); id.Name() != "web" || id.Group() != "/shop" || AppID("/web").Group() != "/" {
		t.Error("names and groups are wrong")
	}
}

// Names in DNS of other kinds than apps are no app's, and only as the first group.
func TestNamesKept(t *testing.T) {
	for id, want := range map[AppID]bool{"/slot": false, "/slot/db": false, "/all/web": false, "/instance/a/b": false, "/l4/a": false, "/shop/slot": true, "/slots": true} {
		s := Spec{ID: id, Containers: []Container{{Shell: "true"}}}
		errs := s.Validate()
		if (len(errs) == 0) != want || !want && errs[0].Path != "id" {
			t.Errorf("%s: %v", id, errs)
		}
	}
}
