package daemon

import (
	"os"
	"runtime"
	"runtime/debug"
)

// leastProcessors is how many goroutines may run at once at least. Starting a program holds one place from fork to exec,
// which with new namespaces takes milliseconds: with two places on two cores, two starts at a time kept every request
// waiting, for up to 300 ms while 200 instances started, and for 40 ms with four.
const leastProcessors = 4

// garbage is how much may be allocated before memory is collected, in percent of what was in use after the last time. With
// 100,000 instances of which 5,000 change each second, Go's own 100 spent a fifth of all processor time on collecting, and
// kept the slowest hundredth of requests waiting for 100 ms, where this took 75.
const garbage = 200

// Tune sets the Go runtime up for a server, unless the environment says how.
func Tune() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < leastProcessors {
		runtime.GOMAXPROCS(leastProcessors)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbage)
	}
}
