package model

import "testing"

func TestReleaseAccepts(t *testing.T) {
	for _, c := range []struct {
		a, b Release
		want bool
	}{
		{Release{1, 4}, Release{1, 4}, true}, {Release{1, 4}, Release{1, 5}, true}, {Release{1, 4}, Release{1, 3}, true},
		{Release{1, 4}, Release{1, 6}, false}, {Release{1, 4}, Release{1, 2}, false}, {Release{1, 0}, Release{2, 0}, false},
		{Release{0, 1}, Release{}, true}, {Release{0, 2}, Release{}, false},
	} {
		if got := c.a.Accepts(c.b); got != c.want {
			t.Errorf("%v accepts %v: %v", c.a, c.b, got)
		}
		if (c.a.Compare(c.b) < 0) != (c.b.Compare(c.a) > 0) {
			t.Errorf("%v and %v are not in an order", c.a, c.b)
		}
	}
}

func TestParseRelease(t *testing.T) {
	for _, s := range []string{"0.1", "1.0", "12.345"} {
		if r, err := ParseRelease(s); err != nil || r.String() != s {
			t.Errorf("%q became %v, %v", s, r, err)
		}
	}
	for _, s := range []string{"", "1", "1.", ".1", "v1.0", "1.2.3", "01.2", "1.-2", "1.4294967296"} {
		if r, err := ParseRelease(s); err == nil {
			t.Errorf("%q was taken as %v", s, r)
		}
	}
}

func TestReleaseBuild(t *testing.T) {
	r := Release{0, 1}
	for scm, want := range map[string]string{
		"dev": "0.1+dev", "646bc65-dirty": "0.1+646bc65-dirty", "v0.1.3": "0.1.3", "v0.1": "0.1", "v0.10.3": "0.1+v0.10.3",
		"v0.1.3-2-g646bc65": "0.1.3-2-g646bc65", "v0.0.9-7-g646bc65": "0.1+v0.0.9-7-g646bc65",
	} {
		if got := r.Build(scm); got != want {
			t.Errorf("%s is called %s, want %s", scm, got, want)
		}
	}
}
