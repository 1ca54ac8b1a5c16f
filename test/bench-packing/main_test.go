package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The lines have the form that docs/benchmarks.md promises: per list and policy, with devices and without.
func TestLines(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	nodes := write("nodes.csv", "cpu_milli,memory_mib,gpu,model\n16000,65536,2,T4\n16000,65536,2,T4\n")
	pods := write("some_list.csv", "cpu_milli,memory_mib,num_gpu,gpu_milli\n1000,1024,1,500\n2000,1024,1,1000\n1000,2048,0,0\n")
	plain := write("plain.csv", "cpu_milli,memory_mib\n1000,1024\n")
	var out bytes.Buffer
	b := bench{out: &out, seeds: 2, policies: []string{"pack", "spread"}}
	if err := b.run(context.Background(), nodes, []string{pods, plain}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`packing/some_list/pack \d+\.\d\d % \d\.\d gpus unallocated \d+\.\d\d % cpu \d+\.\d\d % memory \d+ placements/s`,
		`packing/some_list/spread .*`,
		`packing-cpu-memory/some_list/pack \d+\.\d\d % cpu \d+\.\d\d % memory \d+ placements/s`,
		`packing-cpu-memory/some_list/spread .*`, `packing-cpu-memory/plain/pack .*`, `packing-cpu-memory/plain/spread .*`,
	}
	if !regexp.MustCompile(`^` + strings.Join(want, "\n") + "\n$").MatchString(out.String()) {
		t.Errorf("printed:\n%s", out.String())
	}
	if err := b.run(context.Background(), "", nil); err == nil || !strings.Contains(err.Error(), "NODES=") {
		t.Errorf("without files: %v", err)
	}
}
