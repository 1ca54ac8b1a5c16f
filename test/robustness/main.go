// Robustness runs a cluster of three servers and five agents, each on a machine of its own (test/machines), lets clients
// work with it, does to it what happens to machines and networks, and checks what was promised:
//
//   - no acknowledged write is lost, fresh reads are linearizable, and others are no older than they say (history);
//   - no two programs run with one stateful identity, or as one instance, at any time, by the programs' own word;
//   - no program ends because a part of the control plane does;
//   - once all is well again, what runs becomes what was asked for within a bound;
//   - what was removed leaves no process, mount or control group.
//
// A seed makes the same faults come in the same order. It prints what it does and ends with a summary; with any violation
// the exit code is 1, and history and logs stay in a directory that it names.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gantry-os/gantry/test/machines"
)

// Options of a run.
type options struct {
	Seed     uint64
	Duration time.Duration
	Bin      string // directory of the gantry to test
	Next     string // directory of the one to upgrade to
	Dir      string // where history and logs go
	Only     string // name of the only fault, "" for all
	Keep     bool
}

const insideEnv = "GANTRY_ROBUSTNESS_INSIDE"

func main() {
	machines.Main()
	if len(os.Args) == 3 && os.Args[1] == witnessArg {
		witness(os.Args[2])
		return
	}
	var o options
	flag.Uint64Var(&o.Seed, "seed", uint64(time.Now().UnixNano()%1e6), "choose the faults and calls")
	flag.DurationVar(&o.Duration, "duration", time.Minute, "how long faults are injected")
	flag.StringVar(&o.Bin, "bin", "bin", "directory of the build to test")
	flag.StringVar(&o.Next, "next", "", "directory of the build that rolling upgrades alternate with (default: the same)")
	flag.StringVar(&o.Dir, "dir", "", "directory for history and logs (default: a new one, removed when all is well)")
	flag.StringVar(&o.Only, "only", "", "inject only this fault: one of "+faultNames())
	flag.BoolVar(&o.Keep, "keep", false, "keep history and logs in any case")
	flag.Parse()
	code, err := start(&o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "robustness:", err)
		code = 1
	}
	os.Exit(code)
}

// start runs o: outside it makes the namespaces and looks after what is left, inside it works.
func start(o *options) (int, error) {
	if err := o.settle(); err != nil {
		return 0, err
	}
	if os.Getenv(insideEnv) != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		return work(ctx, o)
	}
	args := []string{"-seed", fmt.Sprint(o.Seed), "-duration", o.Duration.String(), "-bin", o.Bin, "-next", o.Next, "-dir", o.Dir, "-only", o.Only}
	code, err := machines.Enter(args, insideEnv+"=1")
	if err != nil || code != 0 || o.Keep {
		fmt.Println("history and logs are in", o.Dir)
		return code, err
	}
	return 0, os.RemoveAll(o.Dir)
}

// settle fills in what was left out, and makes paths absolute.
func (o *options) settle() (err error) {
	if o.Only != "" && findFault(o.Only) == nil {
		return fmt.Errorf("-only %q: write one of %s", o.Only, faultNames())
	}
	if o.Bin, err = filepath.Abs(o.Bin); err != nil {
		return err
	}
	if o.Next == "" {
		o.Next = o.Bin
	}
	if o.Next, err = filepath.Abs(o.Next); err != nil {
		return err
	}
	for _, dir := range []string{o.Bin, o.Next} {
		if _, err := os.Stat(filepath.Join(dir, "gantry")); err != nil {
			return fmt.Errorf("%w: run make build first", err)
		}
	}
	if o.Dir == "" {
		if o.Dir, err = os.MkdirTemp("", "gantry-robustness-"); err != nil {
			return err
		}
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return err
	}
	return os.MkdirAll(o.Dir, 0o755)
}
