package images

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

const goarch = runtime.GOARCH

// Users that images have, after those of a Debian machine.
const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nbin:x:2:2:bin:/bin:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/sh\nredis:x:101:101::/var/lib/redis:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n"
	group  = "root:x:0:\nbin:x:2:\nadm:x:4:redis\nwww-data:x:33:\nredis:x:101:\nnogroup:x:65534:\n"
)

// layout changes with what is put into layers besides packages, so that old ones in the cache are not used.
const layout = "5"

// Debian returns an image that holds Debian packages and all they depend on, unpacked but not configured: their
// installation scripts have not run. It has the users root, www-data, redis and nobody, and no command of its own.
// The test is skipped where packages cannot be had.
func Debian(t testing.TB, packages ...string) v1.Image {
	t.Helper()
	layer, err := debianLayer(packages)
	var missing *unavailable
	if errors.As(err, &missing) {
		t.Skipf("no image of the Debian packages %s: %v", strings.Join(packages, ", "), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return appendLayer(t, base(t), func() (io.ReadCloser, error) { return os.Open(layer) })
}

// Busybox returns an image with a shell, sleep, and the other programs of busybox, whose command is the shell.
func Busybox(t testing.TB) v1.Image {
	t.Helper()
	return With(t, Debian(t, "busybox-static"), func(c *v1.Config) { c.Cmd = []string{"/bin/sh"} })
}

// unavailable says why packages cannot be had here.
type unavailable struct{ why string }

func (u *unavailable) Error() string { return u.why }

// debianLayer returns the file of a layer, made now or taken from the cache.
func debianLayer(packages []string) (string, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return "", &unavailable{"this is not a Debian machine: there is no apt-get"}
	}
	if os.Geteuid() != 0 {
		return "", &unavailable{"files of several owners can only be unpacked by root"}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	packages = slices.Sorted(slices.Values(packages))
	sum := sha256.Sum256([]byte(layout + goarch + strings.Join(packages, ",")))
	dir := filepath.Join(cache, "gantry-test-images", hex.EncodeToString(sum[:8]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	layer := filepath.Join(dir, "layer.tar.gz")
	if _, err := os.Stat(layer); err == nil {
		return layer, nil
	}
	return layer, buildLayer(dir, layer, packages)
}

// lock keeps other test processes from building the same layer.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	return func() { _ = f.Close() }, err
}

func buildLayer(dir, layer string, packages []string) error {
	work, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	debs, err := download(filepath.Join(work, "debs"), packages)
	if err != nil {
		return err
	}
	root := filepath.Join(work, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	for _, deb := range debs {
		if out, err := exec.Command("dpkg-deb", "-x", deb, root).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w: %s", filepath.Base(deb), err, out)
		}
	}
	if err := furnish(root); err != nil {
		return fmt.Errorf("furnish: %w", err)
	}
	if err := pack(root, layer+".new"); err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	return os.Rename(layer+".new", layer)
}

// download fetches packages and what they depend on, as if nothing were installed.
func download(dir string, packages []string) ([]string, error) {
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return nil, err
	}
	status := filepath.Join(dir, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	args := append([]string{"install", "--download-only", "--yes", "--no-install-recommends", "-qq",
		"-o", "Dir::Cache::archives=" + dir, "-o", "Dir::State::status=" + status,
		"-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2"}, packages...)
	out, err := exec.Command("apt-get", args...).CombinedOutput()
	if err != nil { // lists of packages that are missing or old
		if out, err := exec.Command("apt-get", "update", "-qq").CombinedOutput(); err != nil {
			return nil, &unavailable{fmt.Sprintf("apt-get update: %v: %s", err, lastLine(out))}
		}
		if out, err = exec.Command("apt-get", args...).CombinedOutput(); err != nil {
			return nil, &unavailable{fmt.Sprintf("apt-get install --download-only: %v: %s", err, lastLine(out))}
		}
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err == nil && len(debs) == 0 {
		err = fmt.Errorf("apt-get downloaded nothing: %s", lastLine(out))
	}
	return debs, err
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// furnish adds what installation scripts would have made.
func furnish(root string) error {
	dirs := map[string]fs.FileMode{
		"bin": 0o755, "etc": 0o755, "proc": 0o755, "sys": 0o755, "dev": 0o755, "run": 0o755, "root": 0o700, "srv": 0o755,
		"mnt": 0o755, "tmp": 0o777 | fs.ModeSticky, "var/tmp": 0o777 | fs.ModeSticky, "var/log": 0o755, "var/www": 0o755,
	}
	for d, mode := range dirs {
		path := filepath.Join(root, d)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	for d, uid := range map[string]int{"var/lib/redis": 101, "var/log/redis": 101} {
		path := filepath.Join(root, d)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chown(path, uid, uid); err != nil {
			return err
		}
	}
	for file, text := range map[string]string{"etc/passwd": passwd, "etc/group": group} {
		if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return linkApplets(root)
}

// linkApplets gives the programs that busybox contains their names.
func linkApplets(root string) error {
	out, err := exec.Command(filepath.Join(root, "bin/busybox"), "--list").Output()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list applets: %w", err)
	}
	for applet := range strings.FieldsSeq(string(out)) {
		err := os.Symlink("busybox", filepath.Join(root, "bin", applet))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// unneeded are directories of packages, as patterns, that no program here looks at: documentation, and what perl, which only
// installation scripts use, brings with it.
var unneeded = []string{
	"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian", "usr/share/zoneinfo",
	"usr/share/perl", "usr/share/perl5", "usr/share/i18n", "usr/lib/systemd", "lib/systemd",
	"usr/lib/*/perl", "usr/lib/*/perl-base", "usr/lib/*/gconv", "usr/bin/perl*",
}

// pack writes a directory as a compressed tar file with owners and modes, the same for the same files.
func pack(root, file string) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, z.Close()) }()
	w := tar.NewWriter(z)
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(root, path)
		if err = errors.Join(err, relErr); err != nil || rel == "." {
			return err
		}
		if slices.ContainsFunc(unneeded, func(p string) bool { ok, _ := filepath.Match(p, rel); return ok }) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		return add(w, path, rel, d)
	})
	return errors.Join(err, w.Close())
}

func add(w *tar.Writer, path, rel string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.ModTime, h.AccessTime, h.ChangeTime = rel, time.Unix(0, 0), time.Time{}, time.Time{}
	h.Uname, h.Gname = "", ""
	if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
