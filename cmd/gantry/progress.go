package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
)

// progress shows a deployment on its way.
type progress interface {
	show(d model.Deployment)
	close()
}

// progress returns what suits the output: a line that is redrawn on a terminal, a line for each new sentence elsewhere,
// nothing with --json.
func (c *cli) progress() progress {
	switch {
	case c.json:
		return silence{}
	case c.term.is:
		return newSpinner(c.out, c.term, c.now)
	}
	return &lines{w: c.out}
}

type silence struct{}

func (silence) show(model.Deployment) {}
func (silence) close()                {}

// lines prints each sentence once.
type lines struct {
	w    io.Writer
	last string
}

func (l *lines) show(d model.Deployment) {
	if d.Message != "" && d.Message != l.last && !d.State.Over() {
		fmt.Fprintf(l.w, "%s: %s\n", d.App, sentence(d))
	}
	l.last = d.Message
}

func (*lines) close() {}

// sentence is what a deployment does or waits for.
func sentence(d model.Deployment) string {
	return strings.ReplaceAll(d.Message, "\n", " ")
}

// spinner redraws one line in place until it is closed.
type spinner struct {
	w       io.Writer
	term    terminal
	now     func() time.Time
	started time.Time
	done    chan struct{}
	drawer  sync.WaitGroup

	mu   sync.Mutex
	text string
	turn int
}

var frames = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}

// clearLine moves to the start of the line and empties it.
const clearLine = "\r\x1b[K"

func newSpinner(w io.Writer, t terminal, now func() time.Time) *spinner {
	s := &spinner{w: w, term: t, now: now, started: now(), done: make(chan struct{})}
	s.drawer.Go(s.spin)
	return s
}

func (s *spinner) spin() {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
			s.draw()
		}
	}
}

func (s *spinner) show(d model.Deployment) {
	text := string(d.App)
	if d.Want > 0 {
		text += fmt.Sprintf(" %d/%d", d.Done, d.Want)
	}
	s.mu.Lock()
	s.text = text + "  " + afterTally(sentence(d))
	s.mu.Unlock()
	s.draw()
}

// afterTally leaves out how many instances are healthy, which the numbers before it show: one line has no room for both.
func afterTally(s string) string {
	if tally, rest, ok := strings.Cut(s, " healthy; "); ok && !strings.ContainsAny(tally, ";:") {
		return rest
	}
	return s
}

func (s *spinner) draw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	width, _ := s.term.size()
	s.turn++
	line := fmt.Sprintf("%s %s  %s", frames[s.turn%len(frames)], show.Age(s.now().Sub(s.started)), s.text)
	fmt.Fprint(s.w, clearLine+ansi.Truncate(line, max(width-1, 1), "…"))
}

// close removes the line.
func (s *spinner) close() {
	close(s.done)
	s.drawer.Wait()
	fmt.Fprint(s.w, clearLine)
}
