package client

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// registry gives the test a registry of its own.
func registry(t *testing.T) string {
	t.Helper()
	dir, old := t.TempDir(), registryDir
	registryDir = func() string { return dir }
	t.Cleanup(func() { registryDir = old })
	return dir
}

// sleeper starts a process that stands for another server.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func announce(t *testing.T, l Local) func() {
	t.Helper()
	remove, err := Announce(l)
	if err != nil {
		t.Fatal(err)
	}
	return remove
}

// A command without flags finds the one server there is, and none after it has withdrawn.
func TestFindLocal(t *testing.T) {
	registry(t)
	if _, err := FindLocal(""); !errors.Is(err, ErrNoLocal) {
		t.Fatalf("nothing announced: got %v, want ErrNoLocal", err)
	}
	data := t.TempDir()
	remove := announce(t, Local{Addr: "http://127.0.0.1:7070", TokenFile: "/t", DataDir: data})
	got, err := FindLocal("")
	if err != nil {
		t.Fatal(err)
	}
	if got.Addr != "http://127.0.0.1:7070" || got.TokenFile != "/t" || got.DataDir != data || got.PID != os.Getpid() || got.Started.IsZero() {
		t.Errorf("found %+v", got)
	}
	if _, err := FindLocal(t.TempDir()); !errors.Is(err, ErrNoLocal) {
		t.Errorf("another data directory: got %v, want ErrNoLocal", err)
	}
	remove()
	if _, err := FindLocal(""); !errors.Is(err, ErrNoLocal) {
		t.Errorf("withdrawn: got %v, want ErrNoLocal", err)
	}
}

// Several servers: the data directory chooses, by any of its names, and without one the choice is the user's.
func TestFindLocalAmongSeveral(t *testing.T) {
	registry(t)
	one, two := t.TempDir(), t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(two, link); err != nil {
		t.Fatal(err)
	}
	announce(t, Local{Addr: "http://127.0.0.1:1", DataDir: one})
	announce(t, Local{Addr: "http://127.0.0.1:2", DataDir: two, PID: sleeper(t).Process.Pid})
	_, err := FindLocal("")
	if !errors.Is(err, ErrSeveralLocal) || !strings.Contains(err.Error(), "http://127.0.0.1:1 in "+one) || !strings.Contains(err.Error(), "GANTRY_ADDR") {
		t.Errorf("got %v, want a list of both", err)
	}
	if got, err := FindLocal(link); err != nil || got.Addr != "http://127.0.0.1:2" {
		t.Errorf("by a link to the directory: got %+v, %v", got, err)
	}
	announce(t, Local{Addr: "http://127.0.0.1:3", DataDir: DefaultDataDir(), PID: sleeper(t).Process.Pid})
	if got, err := FindLocal(""); err != nil || got.Addr != "http://127.0.0.1:3" {
		t.Errorf("the default data directory: got %+v, %v", got, err)
	}
}

// Whoever names the address of a server of this machine needs not name its token too. No other address gets it.
func TestLocalTokenFile(t *testing.T) {
	registry(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("t"), 0o600); err != nil {
		t.Fatal(err)
	}
	announce(t, Local{Addr: "http://127.0.0.1:7070", TokenFile: token, DataDir: t.TempDir()})
	announce(t, Local{Addr: "http://127.0.0.1:7071", TokenFile: token + ".gone", DataDir: t.TempDir(), PID: sleeper(t).Process.Pid})
	for addr, want := range map[string]string{
		"http://127.0.0.1:7070": token, "http://127.0.0.1:7070/": token, "127.0.0.1:7070": token,
		"http://127.0.0.1:7071": "", "http://127.0.0.1:70": "", "https://127.0.0.1:7070": "", "": "",
	} {
		if got := LocalTokenFile(addr); got != want {
			t.Errorf("%q: got %q, want %q", addr, got, want)
		}
	}
}

// A server that was killed leaves its file behind. It must not be found, not even when its pid is used again.
func TestFindLocalForgetsTheDead(t *testing.T) {
	dir := registry(t)
	dead := sleeper(t)
	announce(t, Local{Addr: "http://127.0.0.1:1", DataDir: "/dead", PID: dead.Process.Pid})
	dead.Process.Kill()
	dead.Wait()

	reused := announcement{Local{Addr: "http://127.0.0.1:2", DataDir: "/reused", PID: os.Getpid(), Started: time.Now()}, 1, bootID()}
	b, err := json.Marshal(reused)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"1.json": b, "2.json": []byte("{")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := FindLocal(""); !errors.Is(err, ErrNoLocal) {
		t.Errorf("got %+v, %v, want ErrNoLocal", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("stale files stay: %v", left)
	}
}

// A process that ended is gone for ProcessStart before its parent has waited for it.
func TestProcessStartOfZombie(t *testing.T) {
	cmd := sleeper(t)
	if _, ok := ProcessStart(cmd.Process.Pid); !ok {
		t.Fatal("a running process is not seen")
	}
	cmd.Process.Kill()
	deadline := time.Now().Add(5 * time.Second)
	for {
		if _, ok := ProcessStart(cmd.Process.Pid); !ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a zombie counts as running")
		}
		time.Sleep(time.Millisecond)
	}
}
