// Package chart draws lines over a common axis as an SVG picture: one panel below the other, a line per name, and a legend
// that says where each line ends.
package chart

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Picture is what to draw.
type Picture struct {
	Title, Subtitle string
	X               string // name of the common axis, with its unit
	Panels          []Panel
}

// Panel is one diagram of a picture.
type Panel struct {
	Title string
	Y     string // name of the axis, with its unit
	Unit  string // after values in the legend
	Top   float64
	Lines []Line
}

// Line is one line of a panel. Lines of the same place in their panels have the same colour.
type Line struct {
	Name   string
	Points []Point
	Note   float64 // what the legend says beside the name
	Aid    bool    // it only guides the eye: thin, grey, in no legend
}

// Point is a value.
type Point struct{ X, Y float64 }

// Measures of the picture, in pixels.
const (
	width       = 960
	left        = 84
	right       = 210
	head        = 96
	panelHeight = 300
	panelGap    = 66
	foot        = 62
)

// colors can be told apart also by those who do not see all colours.
var colors = []string{"#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444", "#8b6f00"}

// SVG returns the picture.
func (p *Picture) SVG() []byte {
	height := head + len(p.Panels)*(panelHeight+panelGap) - panelGap + foot
	d := &drawing{}
	d.printf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="DejaVu Sans, Verdana, sans-serif" font-size="13" fill="#222">`,
		width, height, width, height)
	d.printf(`<rect width="%d" height="%d" fill="#fff"/>`, width, height)
	d.text(left, 30, `font-size="19" font-weight="bold"`, p.Title)
	d.text(left, 51, `fill="#555"`, p.Subtitle)
	x := p.xAxis()
	for i := range p.Panels {
		top := head + i*(panelHeight+panelGap)
		p.Panels[i].draw(d, x, top)
	}
	d.text((left+width-right)/2, height-16, `text-anchor="middle"`, p.X)
	d.printf(`</svg>`)
	return d.Bytes()
}

func (p *Picture) xAxis() axis {
	low, high := math.Inf(1), math.Inf(-1)
	for _, panel := range p.Panels {
		for _, l := range panel.Lines {
			for _, at := range l.Points {
				low, high = min(low, at.X), max(high, at.X)
			}
		}
	}
	return newAxis(low, high, left, width-right, false)
}

func (p *Panel) draw(d *drawing, x axis, top int) {
	y := p.yAxis(top)
	bottom := top + panelHeight
	d.text(left, top-10, `font-size="15" font-weight="bold"`, p.Title)
	for _, v := range y.ticks() {
		d.printf(`<path d="M%d %sH%d" stroke="#e2e2e2"/>`, left, y.at(v), width-right)
		d.printf(`<text x="%d" y="%s" dy="4" text-anchor="end">%s</text>`, left-8, y.at(v), number(v))
	}
	for _, v := range x.ticks() {
		d.printf(`<path d="M%s %dV%d" stroke="#e2e2e2"/>`, x.at(v), top, bottom)
		d.printf(`<text x="%s" y="%d" text-anchor="middle">%s</text>`, x.at(v), bottom+18, number(v))
	}
	d.printf(`<text transform="translate(24 %d) rotate(-90)" text-anchor="middle">%s</text>`, (top+bottom)/2, escape(p.Y))
	d.printf(`<path d="M%d %dV%dH%d" fill="none" stroke="#666"/>`, left, top, bottom, width-right)
	for i := range slices.Backward(p.Lines) { // the first lies above the others
		p.Lines[i].draw(d, x, y, i)
	}
	p.legend(d, top)
}

// yAxis spans what the lines show, up to the top when that is given.
func (p *Panel) yAxis(top int) axis {
	low, high := math.Inf(1), math.Inf(-1)
	for _, l := range p.Lines {
		for _, at := range l.Points {
			if !l.Aid {
				low, high = min(low, at.Y), max(high, at.Y)
			}
		}
	}
	if p.Top > 0 {
		high = p.Top
	}
	return newAxis(low, high, top+panelHeight, top, true)
}

func (l *Line) draw(d *drawing, x, y axis, place int) {
	var path strings.Builder
	command := "M"
	for _, at := range l.Points {
		if at.Y > y.high || at.Y < y.low {
			continue
		}
		fmt.Fprintf(&path, "%s%s %s", command, x.at(at.X), y.at(at.Y))
		command = "L"
	}
	style := fmt.Sprintf(`stroke="%s" stroke-width="2"`, color(place))
	if l.Aid {
		style = `stroke="#888" stroke-dasharray="5 4"`
	}
	if path.Len() > 0 {
		d.printf(`<path d="%s" fill="none" stroke-linejoin="round" %s><title>%s</title></path>`, path.String(), style, escape(l.Name))
	}
}

func color(place int) string { return colors[place%len(colors)] }

// legend names the lines, the largest value first, as they mostly lie.
func (p *Panel) legend(d *drawing, top int) {
	var order []int
	for i := range p.Lines {
		if !p.Lines[i].Aid {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(p.Lines[b].Note, p.Lines[a].Note) })
	at := width - right + 18
	for row, i := range order {
		y := top + 12 + row*22
		d.printf(`<path d="M%d %dh20" stroke="%s" stroke-width="3"/>`, at, y-4, color(i))
		d.text(at+27, y, "", p.Lines[i].Name)
		d.text(width-14, y, `text-anchor="end"`, strconv.FormatFloat(p.Lines[i].Note, 'f', 1, 64)+p.Unit)
	}
}

// axis maps values to pixels.
type axis struct {
	low, high float64
	from, to  float64 // pixels of low and high
	step      float64 // between ticks
}

// newAxis returns an axis that shows low to high, from one tick to another when it is to be whole.
func newAxis(low, high float64, from, to int, whole bool) axis {
	if !(high > low) {
		low, high = min(low, 0), max(high, 1)
	}
	if math.IsInf(low, 0) || math.IsInf(high, 0) {
		low, high = 0, 1
	}
	a := axis{from: float64(from), to: float64(to), step: step((high - low) / 6)}
	a.low, a.high = low, high
	if whole {
		a.low, a.high = math.Floor(low/a.step)*a.step, math.Ceil(high/a.step)*a.step
	}
	return a
}

// step rounds up to 1, 2 or 5 times a power of ten.
func step(least float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(least)))
	for _, f := range []float64{1, 2, 5} {
		if f*power >= least {
			return f * power
		}
	}
	return 10 * power
}

func (a *axis) ticks() []float64 {
	var all []float64
	first := math.Ceil(a.low/a.step-1e-9) * a.step
	for i := 0; ; i++ {
		v := first + float64(i)*a.step
		if v > a.high+a.step/1e6 {
			return all
		}
		all = append(all, v)
	}
}

// at returns the place of v.
func (a *axis) at(v float64) string {
	return strconv.FormatFloat(a.from+(v-a.low)/(a.high-a.low)*(a.to-a.from), 'f', 1, 64)
}

func number(v float64) string { return strconv.FormatFloat(math.Round(v*1e6)/1e6, 'f', -1, 64) }

// drawing collects elements.
type drawing struct{ bytes.Buffer }

func (d *drawing) printf(format string, args ...any) { fmt.Fprintf(d, format+"\n", args...) }

func (d *drawing) text(x, y int, attributes, s string) {
	d.printf(`<text x="%d" y="%d" %s>%s</text>`, x, y, attributes, escape(s))
}

func escape(s string) string {
	var b bytes.Buffer
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		panic("chart: " + err.Error()) // a buffer takes everything
	}
	return b.String()
}
