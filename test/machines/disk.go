package machines

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func (m *Machine) filler() string { return filepath.Join(m.Disk(), "filler") }

// FillDisk takes all room of the machine's disk.
func (m *Machine) FillDisk() error {
	f, err := os.Create(m.filler())
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 1<<20); len(block) > 0; {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			return err
		}
	}
	return nil
}

// ClearDisk gives the room back.
func (m *Machine) ClearDisk() error {
	if err := os.Remove(m.filler()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
