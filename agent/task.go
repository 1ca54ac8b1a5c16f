package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/agent/health"
	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// task returns what a driver is told to run for a container, and makes what its mounts need.
func (p *pump) task(c *model.Container) (runtime.Task, error) {
	asg, st := p.assignment(), p.a.store
	gantry := p.a.variables(&asg, c)
	env := maps.Clone(gantry)
	for k, v := range c.Env { // a user may set HOST or PORT for the program's own ends, but not who it is
		if !strings.HasPrefix(k, "GANTRY_") {
			env[k] = v
		}
	}
	known := map[string]string{}
	for k := range gantry {
		known[k] = env[k]
	}
	logs := runtime.LogFiles{Dir: st.logs(p.id, c.Name), Size: p.a.cfg.LogSize, Keep: p.a.cfg.LogKeep}
	if err := os.MkdirAll(logs.Dir, 0o711); err != nil {
		return runtime.Task{}, fmt.Errorf("make log directory: %w", err)
	}
	mounts, err := p.mounts(c)
	if err != nil {
		return runtime.Task{}, err
	}
	if p.a.cfg.Resolv != "" && (c.Image != "" || p.a.cfg.Node.Isolated.OK && exists(resolvConf)) && !covered(mounts, resolvConf) {
		mounts = append(mounts, runtime.Mount{Source: p.a.cfg.Resolv, Target: resolvConf, ReadOnly: true})
	}
	t := runtime.Task{
		ID: runtime.ID(p.id, c.Name), Attempt: p.status().Attempt, Image: c.Image,
		Command: replaceAll(c.Command, known), Args: replaceAll(c.Args, known), Env: env,
		User: c.User, Dir: c.Dir, CPUs: c.CPUs, Memory: c.Memory,
		Sandbox: st.sandbox(p.id), Mounts: mounts, Logs: logs,
	}
	if c.Image != "" {
		t.Devices = p.a.cfg.gpus.nodes(idsOf(gpusOf(&asg, c.Name)))
	}
	if c.Shell != "" {
		t.Command = []string{"/bin/sh", "-c", c.Shell}
	}
	return t, nil
}

// resolvConf is where programs look up whom to ask for names.
const resolvConf = "/etc/resolv.conf"

// covered reports whether a mount is at a file, or above it.
func covered(mounts []runtime.Mount, file string) bool {
	return slices.ContainsFunc(mounts, func(m runtime.Mount) bool {
		target := path.Clean(m.Target)
		return target == file || strings.HasPrefix(file, target+"/")
	})
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// variables returns what Gantry sets in a container's environment.
func (a *Agent) variables(asg *wire.Assignment, c *model.Container) map[string]string {
	sandbox := a.store.sandbox(asg.ID)
	if c.Image != "" {
		sandbox = runtime.SandboxPath
	}
	env := map[string]string{
		"GANTRY_APP_ID":      string(asg.App),
		"GANTRY_APP_VERSION": strconv.FormatUint(asg.Version, 10),
		"GANTRY_INSTANCE_ID": string(asg.ID),
		"GANTRY_NODE_ID":     string(a.cfg.Node.ID),
		"GANTRY_NODE_NAME":   a.cfg.Node.Name,
		"GANTRY_SANDBOX":     sandbox,
		"HOST":               a.cfg.Node.Addr,
	}
	var ports []string
	for i, port := range asg.Ports {
		text := strconv.Itoa(int(port))
		ports = append(ports, text)
		env["PORT"+strconv.Itoa(i)] = text
		if i < len(asg.Spec.Endpoints) {
			env["PORT_"+strings.ToUpper(strings.ReplaceAll(asg.Spec.Endpoints[i].Name, "-", "_"))] = text
		}
	}
	if len(ports) > 0 {
		env["PORT"], env["PORTS"] = ports[0], strings.Join(ports, ",")
	}
	giveVariables(env, asg, c)
	return env
}

var variable = regexp.MustCompile(`\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))`)

// replaceAll replaces $NAME and ${NAME} of the known variables in every argument, and leaves all else as it is.
func replaceAll(args []string, known map[string]string) []string {
	if len(args) == 0 {
		return nil
	}
	out := make([]string, len(args))
	for i, arg := range args {
		out[i] = variable.ReplaceAllStringFunc(arg, func(s string) string {
			if v, ok := known[strings.Trim(s, "${}")]; ok {
				return v
			}
			return s
		})
	}
	return out
}

// makeDirs makes the instance's directories and the sources of its volumes. Sandbox and scratch volumes are writable for all
// users, as containers choose theirs; only the node's own users and the instance reach them.
func (p *pump) makeDirs() error {
	st := p.a.store
	spec := p.spec()
	open := []string{st.sandbox(p.id)}
	for _, v := range spec.Volumes {
		if v.Scratch {
			open = append(open, st.volume(p.id, v.Name))
		}
		if v.HostPath == "" { // a persistent volume was made when the instance took it
			continue
		}
		if err := os.MkdirAll(v.HostPath, 0o755); err != nil {
			return fmt.Errorf("volume %s: make host path: %w", v.Name, err)
		}
	}
	for _, dir := range open {
		if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
			return fmt.Errorf("make instance directory: %w", err)
		}
		if err := makeOpenDir(dir); err != nil {
			return fmt.Errorf("make sandbox: %w", err)
		}
	}
	return nil
}

// makeOpenDir makes a directory for all users. One that exists keeps the mode that its program gave it.
func makeOpenDir(dir string) error {
	if _, err := os.Stat(dir); !isNotExist(err) {
		return err
	}
	tmp := dir + ".new"
	if err := os.Mkdir(tmp, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chmod(tmp, fs.ModeSticky|0o777); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// mounts returns the mounts of a container, whose targets it makes where they are in the sandbox.
func (p *pump) mounts(c *model.Container) ([]runtime.Mount, error) {
	asg := p.assignment()
	var out []runtime.Mount
	for _, m := range c.Mounts {
		for _, v := range asg.Spec.Volumes {
			if v.Name != m.Volume {
				continue
			}
			mount, err := p.mount(c, m, p.source(&asg, &v))
			if err != nil {
				return nil, fmt.Errorf("mount %s: %w", m.Path, err)
			}
			if mount != nil {
				mount.Own = v.Persistent != nil && !m.ReadOnly
				out = append(out, *mount)
			}
		}
	}
	return out, nil
}

// source returns the directory of the node that a volume is.
func (p *pump) source(asg *wire.Assignment, v *model.Volume) string {
	switch {
	case v.Scratch:
		return p.a.store.volume(p.id, v.Name)
	case v.Persistent != nil:
		return p.a.volumes.data(model.VolumeOf(asg.App, asg.Slot, v.Name))
	}
	return v.HostPath
}

// mount returns one mount, or nil when a link does for it.
func (p *pump) mount(c *model.Container, m model.Mount, source string) (*runtime.Mount, error) {
	isolated := c.Image != "" || p.a.cfg.Node.Isolated.OK
	if path.IsAbs(m.Path) {
		if c.Image == "" && !isolated {
			return nil, fmt.Errorf("%w: this node does not isolate programs, so nothing can be mounted on %s; use a path in the sandbox",
				runtime.ErrInvalid, m.Path)
		}
		if _, err := os.Stat(m.Path); c.Image == "" && err != nil {
			return nil, fmt.Errorf("%w: without an image, %s must exist on the node", runtime.ErrInvalid, m.Path)
		}
		return &runtime.Mount{Source: source, Target: m.Path, ReadOnly: m.ReadOnly}, nil
	}
	root, err := os.OpenRoot(p.a.store.sandbox(p.id))
	if err != nil {
		return nil, fmt.Errorf("open sandbox: %w", err)
	}
	defer root.Close()
	target := path.Clean(m.Path)
	if !isolated {
		return nil, link(root, source, target)
	}
	if err := root.MkdirAll(target, 0o755); err != nil {
		return nil, fmt.Errorf("make directory in the sandbox: %w", err)
	}
	if c.Image != "" {
		target = path.Join(runtime.SandboxPath, target)
	}
	return &runtime.Mount{Source: source, Target: target, ReadOnly: m.ReadOnly}, nil
}

// link makes a volume visible in the sandbox of a program that is not isolated.
func link(root *os.Root, source, target string) error {
	if dir := path.Dir(target); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make directory in the sandbox: %w", err)
		}
	}
	if old, err := root.Readlink(target); err == nil && old == source {
		return nil
	}
	if err := root.Remove(target); err != nil && !isNotExist(err) {
		return fmt.Errorf("replace %s in the sandbox: %w", target, err)
	}
	if err := root.Symlink(source, target); err != nil {
		return fmt.Errorf("link volume: %w", err)
	}
	return nil
}

// checks returns the instance's checks with their probes. What was known to pass before the agent came back still does.
func (p *pump) checks() []health.Check {
	asg, st := p.assignment(), p.status()
	spec := asg.Spec.WithDefaults()
	var out []health.Check
	for _, c := range spec.Health {
		out = append(out, p.check(&asg, c, false, p.adopted && (st.Healthy == model.Healthy || st.Ready)))
	}
	for _, c := range spec.Readiness {
		out = append(out, p.check(&asg, c, true, p.adopted && st.Ready))
	}
	return out
}

func (p *pump) check(asg *wire.Assignment, c model.Check, readiness, passed bool) health.Check {
	out := health.Check{Check: c, Readiness: readiness, Passed: passed}
	host := p.a.cfg.Node.Addr
	switch {
	case c.HTTP != nil:
		out.Probe = p.a.prober.HTTP(c.HTTP.Scheme, host, portOf(asg, c.HTTP.Endpoint), c.HTTP.Path)
	case c.TCP != nil:
		out.Probe = p.a.prober.TCP(host, portOf(asg, c.TCP.Endpoint))
	default:
		out.Gate = p.a.probes
		out.Probe = p.commandProbe(asg, c.Command)
	}
	return out
}

// portOf returns the port of an endpoint, 0 when it has none.
func portOf(asg *wire.Assignment, endpoint string) uint16 {
	for i, e := range asg.Spec.Endpoints {
		if e.Name != endpoint {
			continue
		}
		if i < len(asg.Ports) {
			return asg.Ports[i]
		}
		return uint16(e.Port)
	}
	return 0
}

func (p *pump) commandProbe(asg *wire.Assignment, check *model.CommandCheck) health.Probe {
	if check == nil {
		return func(context.Context) error { return errors.New("the check has no probe") }
	}
	c := p.container(check.Container)
	if c == nil {
		return func(context.Context) error { return fmt.Errorf("no container is named %q", check.Container) }
	}
	command := replaceAll(check.Command, p.a.variables(asg, c))
	return func(ctx context.Context) error {
		d, err := p.a.driver(c)
		if err != nil {
			return err
		}
		e, ok := d.(runtime.Execer)
		if !ok {
			return errors.New("this node cannot run commands beside a program")
		}
		code, err := e.Exec(ctx, runtime.ID(p.id, c.Name), runtime.Exec{Command: command, Stdout: io.Discard, Stderr: io.Discard})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		case code != 0:
			return fmt.Errorf("exit code %d", code)
		}
		return nil
	}
}
