// Command gantry is a datacenter operating system in one binary: `gantry up` is the server, and every other command is a
// client of its API. root.go lists the commands; each has a file of its name.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(newCLI(os.Stdin, os.Stdout, os.Stderr).run(ctx, os.Args[1:]))
}
