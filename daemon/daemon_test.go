package daemon

import (
	"os"
	"testing"
)

// A program that runs as another user must get to its sandbox, however closed the data directory was made, and nobody
// may list it because of that.
func TestLetThrough(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root has programs of other users")
	}
	for before, after := range map[os.FileMode]os.FileMode{0o700: 0o711, 0o750: 0o751, 0o755: 0o755} {
		dir := t.TempDir()
		if err := os.Chmod(dir, before); err != nil {
			t.Fatal(err)
		}
		if err := letThrough(dir); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != after {
			t.Errorf("%o became %o (%v), want %o", before, info.Mode().Perm(), err, after)
		}
	}
}
