package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/gantry-os/gantry/cmd/gantry/show"
	"golang.org/x/term"
)

// terminal says what a stream can show. The zero value is a file or a pipe.
type terminal struct {
	is    bool
	color bool
	size  func() (width, height int)
}

func terminalOf(w io.Writer) terminal {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return terminal{}
	}
	dumb := os.Getenv("TERM") == "dumb"
	return terminal{
		is:    !dumb, // a dumb terminal can redraw nothing: it gets what a pipe gets
		color: !dumb && os.Getenv("NO_COLOR") == "",
		size: func() (int, int) {
			w, h, err := term.GetSize(int(f.Fd()))
			if err != nil || w == 0 || h == 0 { // some terminals do not know
				return 80, 24
			}
			return w, h
		},
	}
}

// printer returns a printer to the standard output.
func (c *cli) printer() *show.Printer {
	p := &show.Printer{W: c.out, Color: c.term.color, Now: c.now()}
	if c.term.size != nil {
		p.Width, _ = c.term.size()
	}
	return p
}

// print writes v as JSON when that was asked for, else calls human.
func (c *cli) print(v any, human func(p *show.Printer)) error {
	if !c.json {
		human(c.printer())
		return nil
	}
	return c.printJSON(v, "  ")
}

// printJSON writes v; without an indent on one line.
func (c *cli) printJSON(v any, indent string) error {
	enc := json.NewEncoder(c.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	return enc.Encode(v)
}

// say writes a line for people; with --json it is left out.
func (c *cli) say(format string, args ...any) {
	if !c.json {
		fmt.Fprintf(c.out, format+"\n", args...)
	}
}
