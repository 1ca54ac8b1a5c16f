package machines

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const insideEnv = "GANTRY_TEST_MACHINES"

// TestMain runs the tests in namespaces: this very program is started again there.
func TestMain(m *testing.M) {
	Main()
	if len(os.Args) > 2 && os.Args[1] == helpArg {
		help(os.Args[2])
		return
	}
	if os.Getenv(insideEnv) == "" {
		if os.Geteuid() != 0 {
			fmt.Println("SKIP: machines are made of namespaces, which needs root")
			return
		}
		code, err := Enter(os.Args[1:], insideEnv+"=1")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// helpArg makes this program do something on a machine: tell the time until it is ended, or dial an address.
const helpArg = "help"

func help(what string) {
	if what != "time" {
		_, err := net.DialTimeout("tcp", what, 500*time.Millisecond)
		fmt.Println(err)
		return
	}
	for range time.Tick(20 * time.Millisecond) {
		fmt.Println(time.Now().Unix())
	}
}

func self(t *testing.T) string {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a command line on a machine, and returns what it prints.
func run(t *testing.T, m *Machine, line string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("/bin/sh", "-c", line)
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := m.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if s := p.State(); s != "exit status 0" {
		return out.String(), fmt.Errorf("%s: %s", s, out.String())
	}
	return strings.TrimSpace(out.String()), nil
}

func must(t *testing.T, m *Machine, line string) string {
	t.Helper()
	out, err := run(t, m, line)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return out
}

// Machines are apart in what real ones are apart in, and do to each other what the lab says.
func TestMachines(t *testing.T) {
	lab, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	}()
	var ms []*Machine
	for _, name := range []string{"one", "two"} {
		m, err := lab.Add(name, 8<<20)
		if err != nil {
			t.Fatal(err)
		}
		ms = append(ms, m)
	}
	one, two := ms[0], ms[1]
	if got := must(t, one, "hostname"); got != "one" {
		t.Errorf("the host name is %q", got)
	}

	// A process of a machine is alone with those of the same machine.
	sleep, err := one.Start(exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	if got := must(t, two, "cat /proc/[0-9]*/cmdline"); strings.Contains(got, "1000") {
		t.Error("one machine sees the processes of another")
	}

	hear := func(from, to *Machine) bool {
		return strings.Contains(must(t, from, self(t)+" "+helpArg+" "+to.Addr.String()+":9"), "refused") // by the other machine, which so heard and was heard
	}
	if !hear(one, two) || !hear(two, one) {
		t.Error("machines do not hear each other")
	}
	if err := lab.Cut(one, two, true); err != nil {
		t.Fatal(err)
	}
	if hear(one, two) || hear(two, one) { // the answer is cut
		t.Error("machines hear each other though cut off")
	}
	if err := lab.Cut(one, two, false); err != nil {
		t.Fatal(err)
	}
	if !hear(one, two) {
		t.Error("a cut was not mended")
	}

	if err := one.FillDisk(); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, one, "echo much > "+one.Disk()+"/f && test -s "+one.Disk()+"/f"); err == nil {
		t.Error("a full disk takes more")
	}
	must(t, two, "echo much > "+two.Disk()+"/f && test -s "+two.Disk()+"/f")
	if err := one.ClearDisk(); err != nil {
		t.Fatal(err)
	}

	bootID := must(t, one, "cat /proc/sys/kernel/random/boot_id")
	must(t, one, "echo kept > "+one.Disk()+"/kept; touch /run/lost")
	if err := one.Off(); err != nil {
		t.Fatal(err)
	}
	if s := sleep.State(); !strings.Contains(s, "killed") {
		t.Errorf("without power a process ended with %q", s)
	}
	if err := lab.Cut(two, one, true); err != nil {
		t.Fatal(err)
	}
	if err := one.Boot(); err != nil {
		t.Fatal(err)
	}
	if must(t, one, "cat /proc/sys/kernel/random/boot_id") == bootID {
		t.Error("two boots have one id")
	}
	must(t, one, "test -e "+one.Disk()+"/kept && ! test -e /run/lost")
	if hear(one, two) {
		t.Error("a cut ended with a boot")
	}
	clockJumps(t, two)
}

// clockJumps holds that a machine's clock jumps for what runs there already.
func clockJumps(t *testing.T, m *Machine) {
	if !canSetClocks {
		t.Log("SKIP: clocks of machines can be set on amd64 only")
		return
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	clock := exec.Command(self(t), helpArg, "time")
	clock.Stdout = w
	p, err := m.Start(clock)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	defer func() { p.Signal(syscall.SIGKILL); <-p.Over() }()
	ahead := func() time.Duration {
		b := make([]byte, 4096)
		n, err := out.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(string(b[:n]))
		s, err := strconv.ParseInt(lines[len(lines)-1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Until(time.Unix(s, 0)).Round(time.Minute)
	}
	if got := ahead(); got != 0 {
		t.Fatalf("the clock is %v ahead at first", got)
	}
	for _, want := range []time.Duration{time.Hour, -48 * time.Hour, 0} {
		if err := m.SetClock(want); err != nil {
			t.Fatal(err)
		}
		ahead() // printed before, perhaps
		if got := ahead(); got != want {
			t.Errorf("the clock is %v ahead, want %v", got, want)
		}
	}
}
