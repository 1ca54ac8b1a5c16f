package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// CPU is an amount of processor time in thousandths of one core. Users write cores: 0.5 is CPU(500).
type CPU int64

// Cores returns c as a number of cores.
func (c CPU) Cores() float64 { return float64(c) / 1000 }

func (c CPU) String() string { return strconv.FormatFloat(c.Cores(), 'f', -1, 64) }

// ParseCPU reads a number of cores, such as "0.5" or "2", or thousandths, such as "250m".
func ParseCPU(s string) (CPU, error) {
	s = strings.TrimSpace(s)
	scale := 1000.0
	if n, ok := strings.CutSuffix(s, "m"); ok {
		s, scale = n, 1
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, fmt.Errorf("%q is not a number of cores: write 0.5, 2 or 250m", s)
	}
	c := math.Round(f * scale)
	if f < 0 || c > float64(MaxCPUs) {
		return 0, fmt.Errorf("%q cores is outside 0 to 1000000", s)
	}
	if f > 0 && c == 0 {
		return 0, fmt.Errorf("%q cores is less than 0.001", s)
	}
	return CPU(c), nil
}

// MarshalJSON writes a number of cores.
func (c CPU) MarshalJSON() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalJSON reads a number of cores, or a string as ParseCPU does.
func (c *CPU) UnmarshalJSON(b []byte) error {
	s, err := scalar(b)
	if err != nil {
		return fmt.Errorf("cpus: %w", err)
	}
	*c, err = ParseCPU(s)
	return err
}

// Bytes is an amount of memory or disk in bytes. Users write "256MiB", "1GiB", "512MB" or a plain number of bytes.
type Bytes int64

// Multiples of a byte.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var byteUnits = []struct {
	suffix string
	size   Bytes
}{
	{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB},
	{"Ti", TiB}, {"Gi", GiB}, {"Mi", MiB}, {"Ki", KiB},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3},
	{"T", 1e12}, {"G", 1e9}, {"M", 1e6}, {"k", 1e3}, {"K", 1e3},
	{"B", 1},
}

// ParseBytes reads an amount with a binary (KiB, MiB, GiB, TiB) or decimal (kB, MB, GB, TB) unit, or bytes without one.
func ParseBytes(s string) (Bytes, error) {
	text := strings.TrimSpace(s)
	size := Bytes(1)
	for _, u := range byteUnits {
		if n, ok := strings.CutSuffix(text, u.suffix); ok {
			text, size = strings.TrimSpace(n), u.size
			break
		}
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 && n <= math.MaxInt64/int64(size) {
		return Bytes(n) * size, nil // exactly, also past 2^53
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, fmt.Errorf("%q is not an amount of bytes: write 256MiB, 1GiB or a number of bytes", s)
	}
	if f < 0 || f*float64(size) >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is outside 0 to 8 EiB", s)
	}
	b := Bytes(math.Round(f * float64(size)))
	if f > 0 && b == 0 {
		return 0, fmt.Errorf("%q is less than one byte", s)
	}
	return b, nil
}

// String writes b in the largest binary unit that holds it exactly, so that ParseBytes reads the same amount back.
func (b Bytes) String() string {
	for _, u := range byteUnits[:4] {
		if b >= u.size && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// Human writes b rounded for people, such as "2.5 GiB".
func (b Bytes) Human() string {
	for _, u := range byteUnits[:4] {
		if b >= u.size {
			s := strconv.FormatFloat(float64(b)/float64(u.size), 'f', 1, 64)
			return strings.TrimSuffix(s, ".0") + " " + u.suffix
		}
	}
	return strconv.FormatInt(int64(b), 10) + " B"
}

// MarshalJSON writes the form of String.
func (b Bytes) MarshalJSON() ([]byte, error) { return json.Marshal(b.String()) }

// UnmarshalJSON reads a number of bytes, or a string as ParseBytes does.
func (b *Bytes) UnmarshalJSON(data []byte) error {
	s, err := scalar(data)
	if err != nil {
		return fmt.Errorf("bytes: %w", err)
	}
	*b, err = ParseBytes(s)
	return err
}

// Duration is a length of time. Users write "10s", "1m30s", "500ms", or a plain number of seconds.
type Duration time.Duration

// Std returns d as the standard library's duration.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// ParseDuration reads what time.ParseDuration reads, or a plain number of seconds. It refuses negative lengths.
func ParseDuration(s string) (Duration, error) {
	text := strings.TrimSpace(s)
	d, err := time.ParseDuration(text)
	if err != nil {
		f, ferr := strconv.ParseFloat(text, 64)
		if ferr != nil || math.IsNaN(f) || math.Abs(f) > 1e9 {
			return 0, fmt.Errorf("%q is not a duration: write 10s, 1m30s or 500ms", s)
		}
		d = time.Duration(f * float64(time.Second))
	}
	if d < 0 {
		return 0, fmt.Errorf("%q is negative", s)
	}
	return Duration(d), nil
}

// MarshalJSON writes the form of time.Duration.String.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads a number of seconds, or a string as ParseDuration does.
func (d *Duration) UnmarshalJSON(b []byte) error {
	s, err := scalar(b)
	if err != nil {
		return fmt.Errorf("duration: %w", err)
	}
	*d, err = ParseDuration(s)
	return err
}

// Amount is a count of instances, or a share of the app's instances in percent: "2", "25%".
type Amount string

// Of returns the count that a means for an app of n instances. A share is rounded up when up is set, else down.
// An invalid or empty amount counts as zero; Spec.Validate refuses invalid ones.
func (a Amount) Of(n int, up bool) int {
	v, percent, err := a.parse()
	if err != nil {
		return 0
	}
	if !percent {
		return v
	}
	if up {
		return (n*v + 99) / 100
	}
	return n * v / 100
}

func (a Amount) parse() (n int, percent bool, err error) {
	text, percent := strings.CutSuffix(strings.TrimSpace(string(a)), "%")
	n, err = strconv.Atoi(text)
	if err != nil || n < 0 || n > MaxInstances {
		return 0, false, fmt.Errorf("%q is not an amount of instances: write 2 or 25%%", string(a))
	}
	return n, percent, nil
}

// UnmarshalJSON reads a number or a string.
func (a *Amount) UnmarshalJSON(b []byte) error {
	s, err := scalar(b)
	*a = Amount(s)
	return err
}

// scalar returns the text of a JSON number or string.
func scalar(b []byte) (string, error) {
	if len(b) > 0 && b[0] == '"' {
		var s string
		err := json.Unmarshal(b, &s)
		return s, err
	}
	if len(b) == 0 || b[0] != '-' && (b[0] < '0' || b[0] > '9') {
		return "", errors.New("want a number or a string")
	}
	return string(b), nil
}
