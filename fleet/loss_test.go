package fleet

import (
	"strings"
	"testing"
	"time"
)

// A setting that cannot be meant is refused by the name under which the operator gave it.
func TestLossValidate(t *testing.T) {
	if err := DefaultLoss().Validate(); err != nil {
		t.Error(err)
	}
	for flag, spoil := range map[string]func(*Loss){
		"--unreachable-after": func(l *Loss) { l.Grace = time.Millisecond },
		"--gone-after":        func(l *Loss) { l.Gone = l.Grace - 1 },
		"--calm":              func(l *Loss) { l.Calm = l.CalmMost + 1 },
		"--outage-share":      func(l *Loss) { l.OutageShare = 30 },
	} {
		l := DefaultLoss()
		spoil(&l)
		if err := l.Validate(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}
