// Gantry-oci-shim holds the containers of one instance. containerd starts it; see runtime/containerd/shim.
package main

import (
	"fmt"
	"os"

	"github.com/gantry-os/gantry/runtime/containerd/shim"
)

func main() {
	if err := shim.Main(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gantry-oci-shim:", err)
		os.Exit(1)
	}
}
