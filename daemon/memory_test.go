package daemon

import (
	"testing"
	"time"
)

// The limit leaves room for garbage however much is in use, and small servers alone.
func TestMemoryLimit(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct{ live, elsewhere, want uint64 }{
		{0, 0, roomy},
		{300 * mib, 100 * mib, roomy},
		{500 * mib, 400 * mib, 1152 * mib}, // 1150, in steps
		{4096 * mib, 1024 * mib, 7168 * mib},
	} {
		if got := memoryLimit(tt.live, tt.elsewhere); got != int64(tt.want) {
			t.Errorf("with %d MiB on the heap and %d elsewhere the limit is %d MiB, want %d", tt.live/mib, tt.elsewhere/mib, got/mib, tt.want/mib)
		}
	}
}

// What is read is of this process: memory that it takes up shows.
func TestReadMemory(t *testing.T) {
	_, before := readMemory()
	blocked, done := make(chan struct{}), make(chan struct{})
	const n = 20_000
	for range n {
		go func() { <-blocked; done <- struct{}{} }()
	}
	deadline := time.Now().Add(30 * time.Second)
	for _, after := readMemory(); after < before+n*2048; _, after = readMemory() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines take nothing: %d bytes became %d", n, before, after)
		}
		time.Sleep(time.Millisecond)
	}
	close(blocked)
	for range n {
		<-done
	}
}
