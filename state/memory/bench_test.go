package memory

import (
	"testing"
	"time"

	"github.com/gantry-os/gantry/state/conformance"
)

func BenchmarkUpdate(b *testing.B) { conformance.Bench(b, Open(time.Now)) }
