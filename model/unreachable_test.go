package model

import (
	"strings"
	"testing"
	"time"
)

// TestUnreachable protects law 4: an instance with a slot is replaced while its node is lost only when the user says so.
func TestUnreachable(t *testing.T) {
	minutes := func(n int) Duration { return Duration(n) * Duration(time.Minute) }
	lost := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	const never = -1
	for i, c := range []struct {
		stateful         bool
		written          *Unreachable
		replace, expunge int // minutes
	}{
		{false, nil, 1, 10},
		{false, &Unreachable{ReplaceAfter: minutes(3)}, 3, 10},
		{false, &Unreachable{ReplaceAfter: minutes(30)}, 30, 30},
		{false, &Unreachable{ExpungeAfter: minutes(2)}, 1, 2},
		{false, &Unreachable{Never: true}, never, never},
		{true, nil, never, never},
		{true, &Unreachable{}, never, never},
		{true, &Unreachable{AbandonVolumes: true}, 1, 1},
		{true, &Unreachable{AbandonVolumes: true, ReplaceAfter: minutes(5)}, 5, 5},
	} {
		s := &Spec{Unreachable: c.written}
		if c.stateful {
			s.Volumes = []Volume{{Name: "d", Persistent: &Persistent{Size: GiB}}}
		}
		var errs FieldErrors
		s.validateUnreachable(&errs)
		d := s.WithDefaults()
		d.validateUnreachable(&errs)
		if errs != nil {
			t.Errorf("case %d: %v", i, errs)
		}
		for what, got := range map[int]time.Time{c.replace: d.Unreachable.ReplaceAt(lost), c.expunge: d.Unreachable.ExpungeAt(lost)} {
			want := lost.Add(time.Duration(what) * time.Minute)
			if what == never {
				want = time.Time{}
			}
			if !got.Equal(want) {
				t.Errorf("case %d: %v, want %v", i, got, want)
			}
		}
	}
}

func TestUnreachableIsValidated(t *testing.T) {
	minute := Duration(time.Minute)
	for _, c := range []struct {
		stateful bool
		u        Unreachable
		want     string
	}{
		{false, Unreachable{Never: true, ReplaceAfter: minute}, "unreachable.never: goes with nothing else"},
		{false, Unreachable{AbandonVolumes: true}, "unreachable.abandonVolumes: has no meaning"},
		{false, Unreachable{ReplaceAfter: 5 * minute, ExpungeAfter: minute}, "unreachable.expungeAfter: 1m0s is before"},
		{false, Unreachable{ReplaceAfter: -minute}, "unreachable.replaceAfter: -1m0s is less than 0s"},
		{true, Unreachable{ReplaceAfter: minute}, "unreachable.replaceAfter: an instance with persistent volumes waits"},
		{true, Unreachable{ExpungeAfter: minute}, "unreachable.expungeAfter: an instance with persistent volumes waits"},
		{true, Unreachable{AbandonVolumes: true, ExpungeAfter: minute}, "unreachable.expungeAfter: has no meaning"},
	} {
		s := valid()
		s.Unreachable = &c.u
		s.Volumes = nil
		if c.stateful {
			s.Volumes = []Volume{{Name: "d", Persistent: &Persistent{Size: GiB}}}
		}
		if errs := s.Validate(); !strings.Contains(errs.Error(), c.want) {
			t.Errorf("%+v: %v, want %s", c.u, errs, c.want)
		}
	}
}
