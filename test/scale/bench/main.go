// Command bench measures what scale.Rows lists and prints a line for each: name, value, unit and goal.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gantry-os/gantry/daemon"
	"github.com/gantry-os/gantry/test/scale"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	dir := flag.String("dir", "", "where the stores are made; must be on a real disk (default: the system's place for temporary files)")
	only := flag.String("rows", "", "names of the rows to measure, with commas between them (default: all)")
	shrink := flag.Int("shrink", 1, "divide all sizes by this")
	rate := flag.Float64("rate", 0, "instances that end each second during churn")
	churn := flag.Duration("churn", 30*time.Second, "how long churn is measured")
	profile := flag.String("profile", "", "write profiles of each row to files that begin with this")
	flag.Parse()
	daemon.Tune()
	root, err := os.MkdirTemp(*dir, "gantry-bench-")
	if err != nil {
		return err
	}
	b := &scale.Bench{
		Dir: root, Shrink: *shrink, Rate: *rate, Churn: *churn,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Note:   func(format string, args ...any) { fmt.Fprintf(os.Stderr, "  "+format+"\n", args...) },
	}
	defer func() { err = errors.Join(err, b.Close(), os.RemoveAll(root)) }()
	for _, row := range scale.Rows {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), row.Name) {
			continue
		}
		end, err := profiles(*profile, row.Name)
		if err != nil {
			return err
		}
		before := processorTime()
		value, err := row.Run(b, ctx)
		b.Note("%s took %.1f s of processor time", row.Name, (processorTime() - before).Seconds())
		if err = errors.Join(err, end()); err != nil {
			return fmt.Errorf("%s: %w", row.Name, err)
		}
		fmt.Printf("%s %s %s %s\n", row.Name, number(value), row.Unit, number(row.Goal))
	}
	return nil
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// number writes three digits or more.
func number(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// profiles begins to profile a row, unless prefix is empty, and returns what writes the profiles down.
func profiles(prefix, row string) (func() error, error) {
	if prefix == "" {
		return func() error { return nil }, nil
	}
	runtime.SetMutexProfileFraction(10)
	runtime.SetBlockProfileRate(100_000)
	cpu, err := os.Create(prefix + row + ".cpu.prof")
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return nil, err
	}
	return func() error {
		pprof.StopCPUProfile()
		errs := []error{cpu.Close()}
		for _, kind := range []string{"allocs", "mutex", "block"} {
			f, err := os.Create(prefix + row + "." + kind + ".prof")
			if err != nil {
				return err
			}
			errs = append(errs, pprof.Lookup(kind).WriteTo(f, 0), f.Close())
		}
		return errors.Join(errs...)
	}, nil
}
