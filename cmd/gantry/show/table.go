// Package show lays out what the CLI prints: tables, ages, states and amounts, as text for people. It only writes; what
// to show is for the commands to fetch. A Printer knows whether its reader has colours and how wide the terminal is;
// without a terminal nothing is coloured or cut.
package show

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/charmbracelet/lipgloss"
	"github.com/charmbracelet/x/ansi"
)

// Printer writes for one reader.
type Printer struct {
	W     io.Writer
	Width int  // of the terminal in columns; 0 when there is none, then nothing is cut
	Color bool // the terminal shows colours
	Now   time.Time
}

// gap parts the columns of a table.
const gap = "  "

// narrowest is the width below which no column is cut.
const narrowest = 8

// table holds rows of cells under a header. Cells in the columns named in states are coloured as state words.
type table struct {
	header []string
	rows   [][]string
	states map[int]bool
	right  map[int]bool // columns that are aligned to the right
	rigid  map[int]bool // columns that are never cut, such as ids to copy
	spare  map[int]bool // columns that are left out first when the terminal is narrow
}

func (t *table) add(cells ...string) {
	for i, cell := range cells {
		cells[i] = oneLine(cell)
	}
	t.rows = append(t.rows, cells)
}

// columns makes a set of column numbers.
func columns(n ...int) map[int]bool {
	set := map[int]bool{}
	for _, i := range n {
		set[i] = true
	}
	return set
}

// table writes t. A column that is empty in every row is left out.
func (p *Printer) table(t *table) {
	widths := t.widths()
	t.fit(widths, p.Width)
	p.row(t, widths, t.header, true)
	for _, row := range t.rows {
		p.row(t, widths, row, false)
	}
}

// widths returns the width of each column, 0 for those without content.
func (t *table) widths() []int {
	widths := make([]int, len(t.header))
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], ansi.StringWidth(cell))
		}
	}
	for i, w := range widths {
		if w > 0 || len(t.rows) == 0 {
			widths[i] = max(w, len(t.header[i]))
		}
	}
	return widths
}

// fit leaves out spare columns, and then narrows the widest again and again, until the row fits into total; 0 means there
// is no limit.
func (t *table) fit(widths []int, total int) {
	if total == 0 {
		return
	}
	sum := -len(gap)
	for _, w := range widths {
		if w > 0 {
			sum += w + len(gap)
		}
	}
	for i, w := range widths {
		if sum > total && t.spare[i] && w > 0 {
			widths[i] = 0
			sum -= w + len(gap)
		}
	}
	for sum > total {
		widest := -1
		for i, w := range widths {
			if !t.rigid[i] && w > max(narrowest, len(t.header[i])) && (widest < 0 || w >= widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
		sum--
	}
}

func (p *Printer) row(t *table, widths []int, cells []string, header bool) {
	var b strings.Builder
	for i, cell := range cells {
		if widths[i] == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(gap)
		}
		cell = ansi.Truncate(cell, widths[i], "…")
		pad := strings.Repeat(" ", widths[i]-ansi.StringWidth(cell))
		switch {
		case header:
			cell = p.faint(cell)
		case t.states[i]:
			cell = p.State(cell)
		}
		if t.right[i] {
			cell, pad = pad+cell, ""
		}
		b.WriteString(cell + pad)
	}
	line := strings.TrimRight(b.String(), " ")
	if p.Width > 0 {
		line = ansi.Truncate(line, p.Width, "…") // columns that are not cut may not fit
	}
	fmt.Fprintln(p.W, line)
}

// oneLine keeps a text on its line, and control sequences in it from reaching the terminal.
func oneLine(s string) string {
	return strings.NewReplacer("\n", " ", "\r", " ", "\t", " ", "\x1b", "").Replace(s)
}

// Colours of the terminal's own palette, so that they suit its theme.
const (
	green  = lipgloss.Color("2")
	yellow = lipgloss.Color("3")
	red    = lipgloss.Color("1")
)

var stateColors = map[string]lipgloss.Color{
	"running": green, "healthy": green, "ready": green, "succeeded": green,
	"deploying": yellow, "paused": yellow, "waiting": yellow, "pending": yellow, "assigned": yellow,
	"preparing": yellow, "starting": yellow, "stopping": yellow, "removing": yellow, "not-ready": yellow,
	"cordoned": yellow, "draining": yellow, "maintenance": yellow, "unstable": yellow,
	"degraded": red, "unhealthy": red, "backoff": red, "failed": red, "rolledback": red, "unreachable": red,
}

// State colours a state word. Words without a colour, those of what is over and done, are faint.
func (p *Printer) State(word string) string {
	color, ok := stateColors[word]
	if !ok {
		return p.faint(word)
	}
	return p.paint(lipgloss.NewStyle().Foreground(color), word)
}

// Bold marks the name of what a page is about.
func (p *Printer) Bold(s string) string { return p.paint(lipgloss.NewStyle().Bold(true), s) }

func (p *Printer) faint(s string) string { return p.paint(lipgloss.NewStyle().Faint(true), s) }

func (p *Printer) paint(style lipgloss.Style, s string) string {
	if !p.Color || s == "" {
		return s
	}
	return style.Renderer(palette).Render(s)
}
