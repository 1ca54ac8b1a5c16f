package runtime

import (
	"fmt"
	"os"
	"syscall"
)

// Give makes a task's user the owner of the directories that are to be the task's own. What belongs to somebody already,
// as from an earlier task, stays theirs.
func Give(mounts []Mount, uid, gid uint32) error {
	for _, m := range mounts {
		if !m.Own {
			continue
		}
		info, err := os.Stat(m.Source)
		if err != nil {
			return fmt.Errorf("look at volume: %w", err)
		}
		self := uint32(os.Geteuid())
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != self || uid == self {
			continue
		}
		if err := os.Chown(m.Source, int(uid), int(gid)); err != nil {
			return fmt.Errorf("give volume to its user: %w", err)
		}
	}
	return nil
}
