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
