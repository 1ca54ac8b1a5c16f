package replay

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-os/gantry/scheduler/policy"
)

const nodesCSV = "sn,cpu_milli,memory_mib,gpu,model\nn0,64000,262144,2,P100\nn1,96000,393216,8,G2\nn2,32000,131072,0,\n"

const podsCSV = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,creation_time,deletion_time\n" +
	"a,12000,16384,1,1000,,LS,0,100\nb,6000,12288,1,460,P100|V100,LS,5,\nc,1000,1024,0,0,P100,BE,7,7\nd,64000,1024,8,1000,,BE,9,90\n"

func TestRead(t *testing.T) {
	var m Models
	nodes, err := ReadNodes("nodes.csv", strings.NewReader("\ufeff"+nodesCSV), &m)
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes) != 3 || nodes[0].Total.CPU != 64000 || nodes[0].Free.Memory != 262144<<20 || len(nodes[1].GPUs) != 8 ||
		nodes[1].GPUs[7] != policy.Whole || nodes[1].Models[0] != 1 || len(nodes[2].GPUs) != 0 {
		t.Errorf("got %+v", nodes)
	}
	pods, err := ReadPods("pods.csv", strings.NewReader(podsCSV), &m)
	if err != nil {
		t.Fatal(err)
	}
	want := []Pod{
		{"a", policy.Ask{Amounts: policy.Amounts{CPU: 12000, Memory: 16384 << 20}, GPU: 1000}, 0, 100, true},
		{"b", policy.Ask{Amounts: policy.Amounts{CPU: 6000, Memory: 12288 << 20}, GPU: 460, Models: 1<<0 | 1<<2}, 5, Forever, true},
		{"c", policy.Ask{Amounts: policy.Amounts{CPU: 1000, Memory: 1024 << 20}}, 7, 7, true},
		{"d", policy.Ask{Amounts: policy.Amounts{CPU: 64000, Memory: 1024 << 20}, GPU: 8000}, 9, 90, true},
	}
	for i := range want {
		if i >= len(pods) || pods[i] != want[i] {
			t.Fatalf("pod %d of %d is %+v, want %+v", i, len(pods), pods, want[i])
		}
	}
}

// Clusters without devices need no columns for them, and a workload no times.
func TestReadWithoutGPUs(t *testing.T) {
	var m Models
	nodes, err := ReadNodes("n", strings.NewReader("memory_mib,cpu_milli\n1,2\n"), &m)
	if err != nil || nodes[0].Total != (policy.Amounts{CPU: 2, Memory: 1 << 20}) {
		t.Errorf("got %+v, %v", nodes, err)
	}
	pods, err := ReadPods("p", strings.NewReader("memory_mib,cpu_milli\n1,2\n"), &m)
	if err != nil || pods[0].Timed || pods[0].End != Forever {
		t.Errorf("got %+v, %v", pods, err)
	}
}

func TestReadErrors(t *testing.T) {
	for _, c := range []struct{ nodes, pods, want string }{
		{nodes: "", want: "n.csv: empty: the first line names the columns, such as cpu_milli,memory_mib"},
		{nodes: "cpu_milli\n1\n", want: "n.csv:1: no column memory_mib: the header needs cpu_milli and memory_mib"},
		{nodes: "cpu_milli,cpu_milli,memory_mib\n", want: "n.csv:1: column cpu_milli is there twice"},
		{nodes: "cpu_milli,memory_mib\n", want: "n.csv: no nodes below the header: give at least one"},
		{nodes: "cpu_milli,memory_mib\n1,2\n3\n", want: "n.csv:3:1: wrong number of fields"},
		{nodes: "cpu_milli,memory_mib\n1,2\n3,\"4\n", want: "n.csv:3:6: extraneous or missing \" in quoted-field"},
		{nodes: "cpu_milli,memory_mib\n1,\n", want: `n.csv:2: column memory_mib: "" is no whole number from 0 to 2147483648`},
		{nodes: "cpu_milli,memory_mib\n\n\n1.5,2\n", want: `n.csv:4: column cpu_milli: "1.5" is no whole number from 0 to 2147483648`},
		{nodes: "cpu_milli,memory_mib,gpu\n1,2,65\n", want: `n.csv:2: column gpu: "65" is no whole number from 0 to 64`},
		{pods: "name,memory_mib\n", want: "p.csv:1: no column cpu_milli: the header needs cpu_milli and memory_mib"},
		{pods: "cpu_milli,memory_mib\n-1,2\n", want: `p.csv:2: column cpu_milli: "-1" is no whole number from 0 to 2147483648`},
		{pods: "cpu_milli,memory_mib,num_gpu,gpu_milli\n1,2,1,1001\n", want: `p.csv:2: column gpu_milli: "1001" is no whole number from 0 to 1000`},
		{pods: "cpu_milli,memory_mib,num_gpu,gpu_milli\n1,2,1,0\n", want: "p.csv:2: column gpu_milli: 0 is too little for num_gpu 1: write 1 to 1000"},
		{pods: "cpu_milli,memory_mib,num_gpu,gpu_milli\n1,2,2,500\n", want: "p.csv:2: column gpu_milli: 500 is a share, and num_gpu is 2: shares are of one device, so write 1000"},
		{pods: "cpu_milli,memory_mib,creation_time,deletion_time\n1,2,9,8\n", want: "p.csv:2: column deletion_time: 8 is before creation_time 9"},
	} {
		var m Models
		var err error
		if c.nodes != "" || c.pods == "" {
			_, err = ReadNodes("n.csv", strings.NewReader(c.nodes), &m)
		} else {
			_, err = ReadPods("p.csv", strings.NewReader(c.pods), &m)
		}
		if err == nil || err.Error() != c.want {
			t.Errorf("%q%q:\n got %v\nwant %s", c.nodes, c.pods, err, c.want)
		}
	}
}

func TestReadRefusesTooManyModels(t *testing.T) {
	list := "cpu_milli,memory_mib,gpu,model\n"
	for i := range maxModels + 1 {
		list += "1,1,1,m" + strings.Repeat("x", i) + "\n"
	}
	var m Models
	if _, err := ReadNodes("n.csv", strings.NewReader(list), &m); err == nil || !strings.Contains(err.Error(), "n.csv:66: column model") {
		t.Errorf("got %v", err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write([]byte(podsCSV)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	nodes := write("nodes.csv", []byte(nodesCSV))
	c, pods, err := Load(nodes, write("pods.csv.gz", packed.Bytes()))
	if err != nil || len(pods) != 4 || c.GPUs() != 10 || !c.ByGPU() {
		t.Errorf("got %d pods, %+v, %v", len(pods), c, err)
	}
	for name, b := range map[string][]byte{"cut.csv.gz": packed.Bytes()[:packed.Len()-9], "plain.csv.gz": []byte(podsCSV)} {
		file := write(name, b)
		if _, _, err := Load(nodes, file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// Whatever is in a list, reading it gives nodes within bounds or an error that names the file.
func FuzzReadNodes(f *testing.F) {
	f.Add(nodesCSV)
	f.Add("cpu_milli,memory_mib\n\"1\",2\n")
	f.Fuzz(func(t *testing.T, list string) {
		var m Models
		nodes, err := ReadNodes("file.csv", strings.NewReader(list), &m)
		if err != nil {
			if !strings.Contains(err.Error(), "file.csv") {
				t.Errorf("the error does not name the file: %v", err)
			}
			return
		}
		for _, n := range nodes {
			if n.Free != n.Total || n.Free.CPU < 0 || n.Free.Memory < 0 || len(n.GPUs) > policy.MaxDevices || len(n.GPUs) != len(n.Models) {
				t.Errorf("read %+v", n)
			}
		}
	})
}

// The same of pods; and what was read can be simulated.
func FuzzReadPods(f *testing.F) {
	f.Add(podsCSV)
	f.Add("cpu_milli,memory_mib,gpu_spec,num_gpu\n1,2,a|b,3\n")
	f.Fuzz(func(t *testing.T, list string) {
		var m Models
		nodes, err := ReadNodes("nodes.csv", strings.NewReader(nodesCSV), &m)
		if err != nil {
			t.Fatal(err)
		}
		pods, err := ReadPods("file.csv", strings.NewReader(list), &m)
		if err != nil {
			if !strings.Contains(err.Error(), "file.csv") {
				t.Errorf("the error does not name the file: %v", err)
			}
			return
		}
		for _, p := range pods {
			if p.Ask.CPU < 0 || p.Ask.Memory < 0 || p.Ask.GPU < 0 || p.Ask.GPU > mostGPU || p.End < p.Start || p.Ask.GPU > policy.Whole && p.Ask.GPU%policy.Whole != 0 {
				t.Errorf("read %+v", p)
			}
		}
		if len(pods) > 50 {
			return
		}
		c := NewCluster(nodes, pods)
		placer := NewScan(c.nodes, policy.Spread{})
		for i := range pods {
			placer.Place(pods[i].Ask, i)
		}
	})
}

// mostGPU is the most of devices that a pod can ask for.
const mostGPU = policy.MaxDevices * policy.Whole
