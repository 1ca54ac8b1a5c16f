package model

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Release is a minor version of Gantry, such as 0.1. Servers and agents of neighbouring ones work together, so a cluster is
// upgraded one process at a time. What is on the wire and what is stored change with a release and at no other time.
type Release struct{ Major, Minor uint32 }

// release is raised where work on the next minor version begins. The linker can set it, with which the tests of upgrades make
// builds of other versions.
var release = "0.1"

// ThisRelease is the release that this program is of.
var ThisRelease = mustRelease(release)

func mustRelease(s string) Release {
	r, err := ParseRelease(s)
	if err != nil {
		panic(err)
	}
	return r
}

// ParseRelease is the inverse of Release.String.
func ParseRelease(s string) (Release, error) {
	major, minor, _ := strings.Cut(s, ".")
	a, errA := strconv.ParseUint(major, 10, 32)
	b, errB := strconv.ParseUint(minor, 10, 32)
	r := Release{uint32(a), uint32(b)}
	if errA != nil || errB != nil || r.String() != s {
		return Release{}, fmt.Errorf("%q is no minor version of Gantry: write one such as 0.1", s)
	}
	return r, nil
}

func (r Release) String() string { return fmt.Sprintf("%d.%d", r.Major, r.Minor) }

// MarshalText implements encoding.TextMarshaler.
func (r Release) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Release) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRelease(string(b))
	return err
}

// Compare is negative where r is older than other, and positive where it is newer.
func (r Release) Compare(other Release) int {
	return cmp.Or(cmp.Compare(r.Major, other.Major), cmp.Compare(r.Minor, other.Minor))
}

// Next is the release after r.
func (r Release) Next() Release { return Release{r.Major, r.Minor + 1} }

// Accepts reports whether r works with other: it is the same or a neighbour. Nothing works with another major version.
func (r Release) Accepts(other Release) bool {
	return r == other || r == other.Next() || other == r.Next()
}

// Build is the name for people of one build of r, which scm describes: as it is when it is a tag of r, else after it.
func (r Release) Build(scm string) string {
	if tag, ok := strings.CutPrefix(scm, "v"); ok && strings.HasPrefix(tag+".", r.String()+".") {
		return tag
	}
	return r.String() + "+" + scm
}
