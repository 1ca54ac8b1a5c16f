package chart

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
)

// parse fails unless b is well-formed, and returns its texts.
func parse(t *testing.T, b []byte) []string {
	t.Helper()
	var texts []string
	d := xml.NewDecoder(strings.NewReader(string(b)))
	for {
		token, err := d.Token()
		if err == io.EOF {
			return texts
		}
		if err != nil {
			t.Fatalf("%v in:\n%s", err, b)
		}
		if s, ok := token.(xml.CharData); ok {
			texts = append(texts, string(s))
		}
	}
}

// All that a reader needs is there, whatever the names are.
func TestTexts(t *testing.T) {
	p := Picture{Title: "A & <B>", Subtitle: "how it was", X: "time, in s", Panels: []Panel{{
		Title: "Used", Y: "% of all", Unit: " %", Top: 100, Lines: []Line{
			{Name: `"pack"`, Note: 95.97, Points: []Point{{0, 0}, {10, 96}}}, {Name: "ideal", Aid: true, Points: []Point{{0, 0}, {10, 300}}},
		}}}}
	b := p.SVG()
	all := strings.Join(parse(t, b), "|")
	for _, want := range []string{"A & <B>", "how it was", "time, in s", "Used", "% of all", `"pack"`, "96.0 %", "100", "10"} {
		if !strings.Contains(all, want) {
			t.Errorf("lacks %q: %s", want, all)
		}
	}
	if n := strings.Count(string(b), `stroke-dasharray`); n != 1 {
		t.Errorf("%d lines guide the eye", n)
	}
}

// Nothing to draw, or a flat line, is drawn too.
func TestDegenerate(t *testing.T) {
	for _, points := range [][]Point{nil, {{1, 1}}, {{0, 0}, {5, 0}}, {{0, 1e9}, {1e-9, 1e9 + 1}}} {
		p := Picture{Panels: []Panel{{Lines: []Line{{Name: "x", Points: points}}}, {}}}
		b := p.SVG()
		parse(t, b)
		if s := string(b); strings.Contains(s, "NaN") || strings.Contains(s, "Inf") {
			t.Errorf("%v: %s", points, s)
		}
	}
}

func TestAxis(t *testing.T) {
	for _, c := range []struct {
		low, high float64
		whole     bool
		ticks     string
	}{
		{0, 100, true, "[0 20 40 60 80 100]"}, {50, 130, false, "[60 80 100 120]"}, {0.23, 0.91, true, "[0.2 0.4 0.6 0.8 1]"},
		{3, 3, true, "[0 0.5 1 1.5 2 2.5 3]"},
	} {
		a := newAxis(c.low, c.high, 0, 100, c.whole)
		ticks := a.ticks()
		for i := range ticks {
			ticks[i] = math.Round(ticks[i]*1e6) / 1e6
		}
		if got := fmt.Sprint(ticks); got != c.ticks {
			t.Errorf("%g to %g: %s, want %s", c.low, c.high, got, c.ticks)
		}
		if a.at(a.low) != "0.0" || a.at(a.high) != "100.0" {
			t.Errorf("%g to %g lie at %s and %s", a.low, a.high, a.at(a.low), a.at(a.high))
		}
	}
}
