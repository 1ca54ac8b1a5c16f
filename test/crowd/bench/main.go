// Command bench measures what crowd.Rows lists and prints a line for each: name, value, unit and goal.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gantry-os/gantry/daemon"
	"github.com/gantry-os/gantry/test/crowd"
)

func main() {
	crowd.BeServer()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	dir := flag.String("dir", "", "where servers keep what they store; must be on a real disk (default: the system's place for temporary files)")
	nodes := flag.String("nodes", "/dev/shm", "where simulated machines keep their records: their disks are not what is measured")
	bin := flag.String("bin", "bin", "directory of the built binary and its helpers")
	only := flag.String("rows", "", "names of the rows to measure, with commas between them (default: all)")
	shrink := flag.Int("shrink", 1, "divide all sizes by this")
	steady := flag.Duration("steady", time.Minute, "how long the steady state is measured")
	profile := flag.String("profile", "", "write profiles of servers and agents to files that begin with this")
	flag.Parse()
	daemon.Tune()
	b := &crowd.Bench{
		Shrink: *shrink, Steady: *steady, Profile: *profile,
		Logger: slog.New(slog.DiscardHandler), // thousands of machines say that their server is gone
		Note:   func(format string, args ...any) { fmt.Fprintf(os.Stderr, "  "+format+"\n", args...) },
	}
	if b.Bin, err = filepath.Abs(*bin); err != nil {
		return err
	}
	for from, to := range map[string]*string{*dir: &b.Dir, *nodes: &b.Nodes} {
		if *to, err = os.MkdirTemp(from, "gantry-crowd-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(*to)) }()
		if err := os.Chmod(*to, 0o711); err != nil { // programs of other users run below it
			return err
		}
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	for _, row := range crowd.Rows {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), row.Name) {
			continue
		}
		value, err := row.Run(b, ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", row.Name, err)
		}
		load, err := os.ReadFile("/proc/loadavg")
		if err != nil {
			return err
		}
		b.Note("load: %s", strings.TrimSpace(string(load)))
		fmt.Printf("%s %s %s %s\n", row.Name, number(value), row.Unit, number(row.Goal))
	}
	return nil
}

// number writes three digits or more.
func number(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}
