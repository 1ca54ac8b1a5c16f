package replay

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/scheduler/policy"
)

// Models numbers the models of devices by name. A cluster and its workload share one.
type Models struct{ names []string }

// maxModels is how many models fit into a bit set.
const maxModels = 64

// number returns the number of a model, a new one for a new name.
func (m *Models) number(name string) (uint8, error) {
	i := slices.Index(m.names, name)
	if i < 0 {
		if len(m.names) == maxModels {
			return 0, fmt.Errorf("%q is one model of devices too many: there may be %d", name, maxModels)
		}
		i = len(m.names)
		m.names = append(m.names, name)
	}
	return uint8(i), nil
}

// Pod is one instance of a workload.
type Pod struct {
	Name       string
	Ask        policy.Ask
	Start, End int64 // s; End is Forever for one that does not end
	Timed      bool  // the list says when it started
}

// Forever is the end of a pod that does not end.
const Forever = math.MaxInt64

// The most that a list may say of one machine or pod: what is above is a wrong unit.
const (
	mostCPU    = 1 << 31 // thousandths of a core
	mostMemory = 1 << 31 // MiB
	mostTime   = 1 << 40 // s
)

// ReadNodes reads a list of nodes, in CSV with a header: cpu_milli and memory_mib are required, gpu (count) and model are
// optional, others are skipped. Errors name file, line and column.
func ReadNodes(file string, r io.Reader, m *Models) ([]policy.Node, error) {
	t, err := open(file, r, "cpu_milli", "memory_mib")
	if err != nil {
		return nil, err
	}
	var nodes []policy.Node
	for t.next() {
		var n policy.Node
		n.Total.CPU = t.number("cpu_milli", mostCPU, 0)
		n.Total.Memory = t.number("memory_mib", mostMemory, 0) << 20
		n.Free = n.Total
		count := t.number("gpu", policy.MaxDevices, 0)
		if count > 0 {
			model, err := m.number(t.text("model"))
			if err != nil {
				t.refuse("model", err)
			}
			n.GPUs, n.Models = slices.Repeat([]int32{policy.Whole}, int(count)), slices.Repeat([]uint8{model}, int(count))
		}
		nodes = append(nodes, n)
	}
	return nodes, t.end(len(nodes), "nodes")
}

// ReadPods reads a workload, in CSV with a header: cpu_milli and memory_mib are required; name, num_gpu, gpu_milli (of one
// device, when num_gpu is 1), gpu_spec (models joined by |), creation_time and deletion_time (s) are optional, others are
// skipped. Errors name file, line and column.
func ReadPods(file string, r io.Reader, m *Models) ([]Pod, error) {
	t, err := open(file, r, "cpu_milli", "memory_mib")
	if err != nil {
		return nil, err
	}
	var pods []Pod
	for t.next() {
		p := Pod{Name: t.text("name")}
		p.Ask.CPU = t.number("cpu_milli", mostCPU, 0)
		p.Ask.Memory = t.number("memory_mib", mostMemory, 0) << 20
		p.Ask.GPU = t.gpu()
		p.Ask.Models = t.models(m, p.Ask.GPU)
		p.Timed = t.text("creation_time") != ""
		p.Start = t.number("creation_time", mostTime, 0)
		p.End = t.number("deletion_time", mostTime, Forever)
		if p.End < p.Start {
			t.refuse("deletion_time", fmt.Errorf("%d is before creation_time %d", p.End, p.Start))
		}
		pods = append(pods, p)
	}
	return pods, t.end(len(pods), "pods")
}

// table is a list that is being read. Its first error ends it.
type table struct {
	file     string
	csv      *csv.Reader
	columns  map[string]int
	required []string
	row      []string
	err      error
}

func open(file string, r io.Reader, required ...string) (*table, error) {
	t := &table{file: file, csv: csv.NewReader(bufio.NewReader(r)), columns: map[string]int{}, required: required}
	t.csv.ReuseRecord = true
	header, err := t.csv.Read()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: empty: the first line names the columns, such as %s", file, strings.Join(required, ","))
	} else if err != nil {
		return nil, t.broken(err)
	}
	for i, name := range header {
		if i == 0 {
			name = strings.TrimPrefix(name, "\ufeff") // what spreadsheets write before UTF-8
		}
		if _, twice := t.columns[name]; twice {
			return nil, fmt.Errorf("%s:1: column %s is there twice", file, name)
		}
		t.columns[name] = i
	}
	for _, name := range required {
		if _, ok := t.columns[name]; !ok {
			return nil, fmt.Errorf("%s:1: no column %s: the header needs %s", file, name, strings.Join(required, " and "))
		}
	}
	return t, nil
}

// broken names the file in an error of the CSV reader or of what it reads from.
func (t *table) broken(err error) error {
	var parse *csv.ParseError
	if errors.As(err, &parse) {
		return fmt.Errorf("%s:%d:%d: %w", t.file, parse.Line, parse.Column, parse.Err)
	}
	return fmt.Errorf("read %s: %w", t.file, err)
}

// next goes to the next row, and reports whether there is one and all was well so far.
func (t *table) next() bool {
	if t.err != nil {
		return false
	}
	row, err := t.csv.Read()
	if err != nil {
		if !errors.Is(err, io.EOF) {
			t.err = t.broken(err)
		}
		return false
	}
	t.row = row
	return true
}

// end returns what was wrong; a list of nothing is.
func (t *table) end(rows int, what string) error {
	if t.err == nil && rows == 0 {
		return fmt.Errorf("%s: no %s below the header: give at least one", t.file, what)
	}
	return t.err
}

// refuse keeps what is wrong with a column of this row, unless something was wrong before.
func (t *table) refuse(column string, err error) {
	if t.err == nil {
		line, _ := t.csv.FieldPos(t.columns[column])
		t.err = fmt.Errorf("%s:%d: column %s: %w", t.file, line, column, err)
	}
}

// text returns a column of this row, empty when the list has no such column.
func (t *table) text(column string) string {
	if i, ok := t.columns[column]; ok {
		return strings.TrimSpace(t.row[i])
	}
	return ""
}

// number returns a whole number up to most; absent is for an optional column that is not there or empty.
func (t *table) number(column string, most, absent int64) int64 {
	text := t.text(column)
	if text == "" && !slices.Contains(t.required, column) {
		return absent
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > most {
		t.refuse(column, fmt.Errorf("%q is no whole number from 0 to %d", text, most))
		return absent
	}
	return n
}

// gpu returns how much of devices this row asks for, in thousandths.
func (t *table) gpu() int32 {
	count := t.number("num_gpu", policy.MaxDevices, 0)
	each := t.number("gpu_milli", policy.Whole, policy.Whole)
	switch {
	case count == 0:
		return 0
	case each == 0:
		t.refuse("gpu_milli", fmt.Errorf("0 is too little for num_gpu %d: write 1 to %d", count, policy.Whole))
	case count > 1 && each != policy.Whole:
		t.refuse("gpu_milli", fmt.Errorf("%d is a share, and num_gpu is %d: shares are of one device, so write %d", each, count, policy.Whole))
	}
	return int32(count * each)
}

// models returns the set of models that this row accepts.
func (t *table) models(m *Models, gpu int32) uint64 {
	spec := t.text("gpu_spec")
	if spec == "" || gpu == 0 {
		return 0
	}
	var set uint64
	for _, name := range strings.Split(spec, "|") {
		i, err := m.number(strings.TrimSpace(name))
		if err != nil {
			t.refuse("gpu_spec", err)
			return 0
		}
		set |= 1 << i
	}
	return set
}
