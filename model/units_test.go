package model

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestParseCPU(t *testing.T) {
	for in, want := range map[string]CPU{
		"0": 0, "1": 1000, "0.5": 500, "250m": 250, " 2 ": 2000, "0.001": 1, "1m": 1, "0.0006": 1, "1e3": 1_000_000, "1000000": 1e9,
	} {
		if got, err := ParseCPU(in); err != nil || got != want {
			t.Errorf("ParseCPU(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "x", "m", "-1", "NaN", "Inf", "1000001", "0.0001", "1 core", "1mm"} {
		if got, err := ParseCPU(bad); err == nil {
			t.Errorf("ParseCPU(%q) = %d, want an error", bad, got)
		}
	}
}

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]Bytes{
		"0": 0, "1": 1, "1B": 1, "1KiB": 1024, "1Ki": 1024, "256MiB": 256 * MiB, "1.5GiB": GiB + GiB/2, "2 TiB": 2 * TiB,
		"1kB": 1000, "1K": 1000, "512MB": 512e6, "1G": 1e9, "1e3": 1000, "9223372036854775807": math.MaxInt64, "9007199254740993": 1<<53 + 1,
	} {
		if got, err := ParseBytes(in); err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "MiB", "-1", "-1MiB", "NaN", "InfGiB", "9223372036854775808", "8388608TiB", "0.1", "1XB", "1 Mi B"} {
		if got, err := ParseBytes(bad); err == nil {
			t.Errorf("ParseBytes(%q) = %d, want an error", bad, got)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"0": 0, "10s": 10 * time.Second, "1m30s": 90 * time.Second, "500ms": 500 * time.Millisecond, "5": 5 * time.Second, "0.25": 250 * time.Millisecond,
	} {
		if got, err := ParseDuration(in); err != nil || got.Std() != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "s", "-1s", "-1", "NaN", "Inf", "1e10", "10 s", "1y"} {
		if got, err := ParseDuration(bad); err == nil {
			t.Errorf("ParseDuration(%q) = %v, want an error", bad, got)
		}
	}
}

// TestUnitsRoundTrip protects that what is shown, and written as JSON, is read back the same.
func TestUnitsRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 20_000 {
		n := rng.Int64() >> rng.IntN(63)
		roundTrip(t, Bytes(n), ParseBytes)
		roundTrip(t, Bytes(n>>40)*MiB, ParseBytes)
		roundTrip(t, CPU(n%int64(MaxCPUs)), ParseCPU)
		roundTrip(t, Duration(n), ParseDuration)
	}
}

func roundTrip[T interface {
	comparable
	String() string
}](t *testing.T, v T, parse func(string) (T, error)) {
	t.Helper()
	if got, err := parse(v.String()); err != nil || got != v {
		t.Fatalf("%s is read as %v, %v", v, got, err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var back T
	if err := json.Unmarshal(b, &back); err != nil || back != v {
		t.Fatalf("%s is read as %v, %v", b, back, err)
	}
}

func TestUnitsJSON(t *testing.T) {
	var v struct {
		C CPU
		B Bytes
		D Duration
		A Amount
	}
	if err := json.Unmarshal([]byte(`{"C":"250m","B":1048576,"D":"1m","A":3}`), &v); err != nil {
		t.Fatal(err)
	}
	if v.C != 250 || v.B != MiB || v.D.Std() != time.Minute || v.A != "3" {
		t.Errorf("read as %+v", v)
	}
	for _, bad := range []string{`{"C":true}`, `{"B":null}`, `{"D":[]}`, `{"A":{}}`, `{"C":"x"}`, `{"B":-1}`, `{"D":"-1s"}`} {
		if err := json.Unmarshal([]byte(bad), &v); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func TestBytesHuman(t *testing.T) {
	for in, want := range map[Bytes]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 2560 * MiB: "2.5 GiB", 4 * GiB: "4 GiB", 3 * TiB: "3 TiB"} {
		if got := in.Human(); got != want {
			t.Errorf("%d: %q, want %q", in, got, want)
		}
	}
}

// TestAmountOf protects how shares are rounded: a floor up, a ceiling as its user asks.
func TestAmountOf(t *testing.T) {
	for _, c := range []struct {
		a        Amount
		n        int
		up, down int
	}{
		{"0", 10, 0, 0}, {"3", 10, 3, 3}, {"25%", 4, 1, 1}, {"25%", 5, 2, 1}, {"25%", 1, 1, 0}, {"100%", 7, 7, 7}, {"0%", 7, 0, 0},
		{"33%", 3, 1, 0}, {"200%", 3, 6, 6}, {"", 3, 0, 0}, {"x", 3, 0, 0}, {"-1", 3, 0, 0}, {"1%", 1_000_000, 10_000, 10_000},
	} {
		if up, down := c.a.Of(c.n, true), c.a.Of(c.n, false); up != c.up || down != c.down {
			t.Errorf("%q of %d: %d up and %d down, want %d and %d", c.a, c.n, up, down, c.up, c.down)
		}
	}
}

func FuzzUnits(f *testing.F) {
	for _, s := range []string{"0.5", "250m", "1.5GiB", "1e3", "1m30s", "25%", "NaN", "-0", "0x1p-2", "9223372036854775807", "_1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := ParseCPU(s); err == nil {
			if c < 0 || c > MaxCPUs {
				t.Errorf("ParseCPU(%q) = %d", s, c)
			}
			roundTrip(t, c, ParseCPU)
		}
		if b, err := ParseBytes(s); err == nil {
			if b < 0 {
				t.Errorf("ParseBytes(%q) = %d", s, b)
			}
			roundTrip(t, b, ParseBytes)
		}
		if d, err := ParseDuration(s); err == nil {
			if d < 0 {
				t.Errorf("ParseDuration(%q) = %d", s, d)
			}
			roundTrip(t, d, ParseDuration)
		}
		for _, n := range []int{0, 1, 7, MaxInstances} {
			a := Amount(s)
			if up, down := a.Of(n, true), a.Of(n, false); up < down || down < 0 || up > down+1 {
				t.Errorf("%q of %d: %d up and %d down", s, n, up, down)
			}
		}
		if id, err := ParseAppID(s); err == nil {
			again, err := ParseAppID(string(id))
			if err != nil || again != id || !strings.HasPrefix(string(id), "/") || len(id) > MaxAppID {
				t.Errorf("ParseAppID(%q) = %q, which is read as %q, %v", s, id, again, err)
			}
		}
	})
}
