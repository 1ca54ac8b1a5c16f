package model

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
)

// FieldError is one thing wrong with an input: where, and what would be right.
type FieldError struct {
	Path    string `json:"path"` // such as containers[0].image
	Message string `json:"message"`
}

func (e FieldError) Error() string { return e.Path + ": " + e.Message }

// FieldErrors is everything wrong with an input.
type FieldErrors []FieldError

func (e FieldErrors) Error() string {
	parts := make([]string, len(e))
	for i, f := range e {
		parts[i] = f.Error()
	}
	return strings.Join(parts, "; ")
}

func (e *FieldErrors) add(path, format string, args ...any) {
	*e = append(*e, FieldError{path, fmt.Sprintf(format, args...)})
}

// Limits on one spec. They bound what one request can make the cluster hold.
const (
	MaxContainers = 16
	MaxEndpoints  = 64
	MaxList       = 256     // entries in any other list or map
	MaxText       = 1 << 16 // bytes in any one string
	MaxRules      = 32      // constraints, affinities or spreads
	MaxCustom     = 16      // custom resources
	MaxGPUs       = GPU(64_000)

	MaxCPUs  CPU = 1_000_000_000 // in one container
	MaxBytes     = 1024 * TiB    // of memory or disk in one container: sums must not overflow
)

// Validate returns everything that is wrong with s, or nil. It checks s as written, before defaults.
func (s *Spec) Validate() FieldErrors {
	var errs FieldErrors
	if id, err := ParseAppID(string(s.ID)); err != nil {
		errs.add("id", "%v", err)
	} else if id != s.ID {
		errs.add("id", "write it as %q", id)
	} else if first, _, _ := strings.Cut(string(id[1:]), "/"); NamesKept(first) {
		errs.add("id", "begins with %q, which DNS keeps for other names than those of apps: choose another group", first)
	}
	if n := s.Count(); n < 0 || n > MaxInstances {
		errs.add("instances", "%d is outside 0 to %d", n, MaxInstances)
	}
	checkMap(&errs, "labels", s.Labels)
	s.validateEndpoints(&errs)
	s.validateVolumes(&errs)
	s.validateContainers(&errs)
	s.validateChecks(&errs, "health", s.Health)
	s.validateChecks(&errs, "readiness", s.Readiness)
	s.validatePolicies(&errs)
	oneOf(&errs, "isolation", s.Isolation, IsolationVM)
	s.validatePlacement(&errs)
	return errs
}

func (s *Spec) validateContainers(errs *FieldErrors) {
	if len(s.Containers) == 0 || len(s.Containers) > MaxContainers {
		errs.add("containers", "has %d entries, from 1 to %d are allowed", len(s.Containers), MaxContainers)
	}
	seen := map[string]bool{}
	for i := range s.Containers {
		at := fmt.Sprintf("containers[%d]", i)
		c := &s.Containers[i]
		name := c.Name
		if name == "" && i == 0 {
			name = DefaultContainer
		}
		if err := checkName(name); err != nil {
			errs.add(at+".name", "%v", err)
		} else if seen[name] {
			errs.add(at+".name", "%q is used twice", name)
		}
		seen[name] = true
		c.validate(errs, at)
		if s.Isolation == IsolationVM && c.Image == "" {
			errs.add(at+".image", "is missing: a virtual machine runs images, not programs of the node")
		}
		c.validateMounts(errs, at, s.Volumes)
	}
}

func (c *Container) validate(errs *FieldErrors, at string) {
	switch {
	case len(c.Command) > 0 && c.Shell != "":
		errs.add(at+".shell", "give either shell or command, not both")
	case c.Image == "" && len(c.Command) == 0 && c.Shell == "":
		errs.add(at, "give an image, a command or a shell line")
	case c.Image == "" && len(c.Args) > 0:
		errs.add(at+".args", "only an image has an entrypoint that takes args; use command")
	case c.Shell != "" && len(c.Args) > 0:
		errs.add(at+".args", "a shell line takes no args")
	}
	if len(c.Command) > 0 && c.Command[0] == "" {
		errs.add(at+".command[0]", "the program is empty")
	}
	if strings.ContainsAny(c.Image, " \t\r\n") {
		errs.add(at+".image", "%q has white space", c.Image)
	}
	oneOf(errs, at+".pull", c.Pull, PullMissing, PullAlways, PullNever)
	if c.Auth != nil && c.Auth.Username == "" {
		errs.add(at+".auth.username", "is empty")
	}
	if c.Auth != nil && c.Image == "" {
		errs.add(at+".auth", "only an image comes from a registry that asks for credentials")
	}
	if c.CPUs < 0 || c.CPUs > 0 && c.CPUs < 10 {
		errs.add(at+".cpus", "%v is less than 0.01", c.CPUs)
	}
	if c.CPUs > MaxCPUs {
		errs.add(at+".cpus", "%v is more than %v", c.CPUs, MaxCPUs)
	}
	if c.Memory < 0 || c.Memory > 0 && c.Memory < 4*MiB {
		errs.add(at+".memory", "%v is less than 4MiB", c.Memory)
	}
	if c.Memory > MaxBytes {
		errs.add(at+".memory", "%v is more than %v", c.Memory, MaxBytes)
	}
	if c.Disk < 0 || c.Disk > MaxBytes {
		errs.add(at+".disk", "%v is outside 0 to %v", c.Disk, MaxBytes)
	}
	c.validateDevices(errs, at)
	checkList(errs, at+".command", c.Command)
	checkList(errs, at+".args", c.Args)
	checkText(errs, at+".image", c.Image)
	checkText(errs, at+".shell", c.Shell)
	checkText(errs, at+".user", c.User)
	checkText(errs, at+".dir", c.Dir)
	c.validateEnv(errs, at)
	if len(c.Artifacts) > MaxList {
		errs.add(at+".artifacts", "has %d entries, at most %d are allowed", len(c.Artifacts), MaxList)
	}
	for i := range c.Artifacts {
		c.Artifacts[i].validate(errs, fmt.Sprintf("%s.artifacts[%d]", at, i))
	}
}

func (c *Container) validateDevices(errs *FieldErrors, at string) {
	switch {
	case c.GPUs < 0 || c.GPUs > MaxGPUs:
		errs.add(at+".gpus", "%v is outside 0 to %v", c.GPUs, MaxGPUs)
	case c.GPUs > 1000 && !c.GPUs.Whole():
		errs.add(at+".gpus", "%v is neither a number of whole devices nor a share of one below 1", c.GPUs)
	case c.GPUs == 0 && len(c.GPUModels) > 0:
		errs.add(at+".gpuModels", "has no meaning without gpus")
	}
	checkList(errs, at+".gpuModels", c.GPUModels)
	tooMany(errs, at+".custom", len(c.Custom), MaxCustom)
	for _, k := range slices.Sorted(maps.Keys(c.Custom)) {
		checkAttribute(errs, at+".custom", k)
		if c.Custom[k] <= 0 {
			errs.add(fmt.Sprintf("%s.custom[%q]", at, k), "%v is not more than 0", c.Custom[k])
		}
	}
}

func (c *Container) validateEnv(errs *FieldErrors, at string) {
	checkMap(errs, at+".env", c.Env)
	for _, k := range slices.Sorted(maps.Keys(c.Env)) {
		if k == "" || strings.ContainsAny(k, "=\x00") {
			errs.add(at+".env", "%q is not a variable name", k)
		}
	}
}

func (a *Artifact) validate(errs *FieldErrors, at string) {
	u, err := url.Parse(a.URI)
	switch {
	case err != nil:
		errs.add(at+".uri", "%v", err)
	case u.Scheme == "file" && (!path.IsAbs(u.Path) || u.Host != "" && u.Host != "localhost"):
		errs.add(at+".uri", "%q: a file: address needs an absolute path, such as file:///srv/app.tar.gz", a.URI)
	case u.Scheme != "file" && u.Scheme != "http" && u.Scheme != "https":
		errs.add(at+".uri", "%q: file:, http: and https: addresses are known", a.URI)
	case u.Scheme != "file" && u.Host == "":
		errs.add(at+".uri", "%q names no host", a.URI)
	}
	checkText(errs, at+".uri", a.URI)
	switch {
	case a.Path == "" && err == nil && (path.Base(u.Path) == "/" || path.Base(u.Path) == "."):
		errs.add(at+".path", "%q ends without a file name; say where to put it", a.URI)
	case a.Path != "" && (!localPath(a.Path) || path.Clean(a.Path) == "."):
		errs.add(at+".path", "%q is no place in the sandbox; write a relative path without ..", a.Path)
	}
	if a.Checksum == "" {
		return
	}
	algo, sum, _ := strings.Cut(a.Checksum, ":")
	size := map[string]int{"sha256": 32, "sha512": 64}[algo]
	if raw, err := hex.DecodeString(sum); size == 0 || err != nil || len(raw) != size {
		errs.add(at+".checksum", "%q is not sha256: with 64 or sha512: with 128 hex digits", a.Checksum)
	}
}

func localPath(p string) bool {
	return !path.IsAbs(p) && !strings.ContainsRune(p, 0) && !slices.Contains(strings.Split(p, "/"), "..")
}

func (c *Container) validateMounts(errs *FieldErrors, at string, volumes []Volume) {
	if len(c.Mounts) > MaxList {
		errs.add(at+".mounts", "has %d entries, at most %d are allowed", len(c.Mounts), MaxList)
	}
	for i, m := range c.Mounts {
		at := fmt.Sprintf("%s.mounts[%d]", at, i)
		if !slices.ContainsFunc(volumes, func(v Volume) bool { return v.Name == m.Volume }) {
			errs.add(at+".volume", "no volume is named %q", m.Volume)
		}
		switch {
		case m.Path == "" || path.Clean(m.Path) == "/" || path.Clean(m.Path) == ".":
			errs.add(at+".path", "%q is not a directory that can be mounted on", m.Path)
		case !path.IsAbs(m.Path) && !localPath(m.Path):
			errs.add(at+".path", "%q leaves the sandbox", m.Path)
		case strings.ContainsRune(m.Path, 0):
			errs.add(at+".path", "has a NUL byte")
		}
	}
}

func (s *Spec) validateEndpoints(errs *FieldErrors) {
	if len(s.Endpoints) > MaxEndpoints {
		errs.add("endpoints", "has %d entries, at most %d are allowed", len(s.Endpoints), MaxEndpoints)
	}
	names, ports := map[string]bool{}, map[string]bool{}
	for i, e := range s.Endpoints {
		at := fmt.Sprintf("endpoints[%d]", i)
		if err := checkName(e.Name); err != nil {
			errs.add(at+".name", "%v", err)
		} else if names[e.Name] {
			errs.add(at+".name", "%q is used twice", e.Name)
		}
		names[e.Name] = true
		if e.Port < 0 || e.Port > 65535 {
			errs.add(at+".port", "%d is outside 0 to 65535; 0 assigns a free one", e.Port)
		}
		oneOf(errs, at+".protocol", e.Protocol, "tcp", "udp")
		key := fmt.Sprintf("%s/%d", cmp.Or(e.Protocol, "tcp"), e.Port)
		if e.Port != 0 && ports[key] {
			errs.add(at+".port", "%d is used twice", e.Port)
		}
		ports[key] = true
	}
}

func (s *Spec) validateVolumes(errs *FieldErrors) {
	if len(s.Volumes) > MaxList {
		errs.add("volumes", "has %d entries, at most %d are allowed", len(s.Volumes), MaxList)
	}
	seen := map[string]bool{}
	for i, v := range s.Volumes {
		at := fmt.Sprintf("volumes[%d]", i)
		if err := checkName(v.Name); err != nil {
			errs.add(at+".name", "%v", err)
		} else if seen[v.Name] {
			errs.add(at+".name", "%q is used twice", v.Name)
		}
		seen[v.Name] = true
		sources := 0
		for _, has := range []bool{v.HostPath != "", v.Scratch, v.Persistent != nil} {
			if has {
				sources++
			}
		}
		if sources != 1 {
			errs.add(at, "give exactly one of hostPath, scratch: true and persistent")
		}
		if p := v.Persistent; p != nil && (p.Size < MiB || p.Size > MaxBytes) {
			errs.add(at+".persistent.size", "%v is outside 1MiB to %v", p.Size, MaxBytes)
		}
		if v.HostPath != "" && (!path.IsAbs(v.HostPath) || path.Clean(v.HostPath) == "/" || strings.ContainsRune(v.HostPath, 0)) {
			errs.add(at+".hostPath", "%q is not an absolute path below /", v.HostPath)
		}
	}
}

func (s *Spec) validateChecks(errs *FieldErrors, list string, checks []Check) {
	if len(checks) > MaxList {
		errs.add(list, "has %d entries, at most %d are allowed", len(checks), MaxList)
	}
	for i := range checks {
		at := fmt.Sprintf("%s[%d]", list, i)
		c := &checks[i]
		n := 0
		if c.HTTP != nil {
			n++
			s.checkEndpoint(errs, at+".http", c.HTTP.Endpoint)
			oneOf(errs, at+".http.scheme", c.HTTP.Scheme, "http", "https")
			if c.HTTP.Path != "" && c.HTTP.Path[0] != '/' {
				errs.add(at+".http.path", "%q does not begin with /", c.HTTP.Path)
			}
			checkText(errs, at+".http.path", c.HTTP.Path)
		}
		if c.TCP != nil {
			n++
			s.checkEndpoint(errs, at+".tcp", c.TCP.Endpoint)
		}
		if c.Command != nil {
			n++
			s.checkCommand(errs, at+".command", c.Command)
		}
		if n != 1 {
			errs.add(at, "give exactly one of http, tcp and command")
		}
		atLeast(errs, at+".interval", c.Interval, 100*time.Millisecond)
		atLeast(errs, at+".timeout", c.Timeout, 10*time.Millisecond)
		atLeast(errs, at+".grace", c.Grace, 0)
		if c.Failures < 0 || c.Failures > 1000 {
			errs.add(at+".failures", "%d is outside 1 to 1000", c.Failures)
		}
	}
}

func (s *Spec) checkEndpoint(errs *FieldErrors, at, name string) {
	i := slices.IndexFunc(s.Endpoints, func(e Endpoint) bool { return e.Name == name })
	if i < 0 {
		errs.add(at+".endpoint", "no endpoint is named %q", name)
	} else if s.Endpoints[i].Protocol == "udp" {
		errs.add(at+".endpoint", "endpoint %q is udp; only tcp can be checked so", name)
	}
}

func (s *Spec) checkCommand(errs *FieldErrors, at string, c *CommandCheck) {
	if len(c.Command) == 0 || c.Command[0] == "" {
		errs.add(at+".command", "the program is empty")
	}
	checkList(errs, at+".command", c.Command)
	known := slices.ContainsFunc(s.WithDefaults().Containers, func(k Container) bool { return k.Name == c.Container })
	if c.Container != "" && !known {
		errs.add(at+".container", "no container is named %q", c.Container)
	}
}

func (s *Spec) validatePolicies(errs *FieldErrors) {
	if r := s.Restart; r != nil {
		atLeast(errs, "restart.backoff", r.Backoff, 10*time.Millisecond)
		atLeast(errs, "restart.max", r.Max, 10*time.Millisecond)
		atLeast(errs, "restart.reset", r.Reset, 10*time.Millisecond)
		if inside := r.Factor >= 1 && r.Factor <= 100; r.Factor != 0 && !inside { // NaN is not inside
			errs.add("restart.factor", "%g is outside 1 to 100", r.Factor)
		}
	}
	if st := s.Stop; st != nil {
		if _, ok := SignalNumber(st.Signal); st.Signal != "" && !ok {
			errs.add("stop.signal", "%q is not a signal: write SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH or SIGKILL", st.Signal)
		}
		atLeast(errs, "stop.grace", st.Grace, 0)
		if st.Grace > Duration(24*time.Hour) {
			errs.add("stop.grace", "%v is more than 24h", st.Grace)
		}
	}
	s.validateUpdate(errs)
	s.validateUnreachable(errs)
	oneOf(errs, "killOrder", s.KillOrder, YoungestFirst, OldestFirst)
}

func (s *Spec) validateUpdate(errs *FieldErrors) {
	u := s.Update
	if u == nil {
		return
	}
	n, percent, err := checkAmount(errs, "update.minHealthy", u.MinHealthy)
	if percent && n > 100 {
		errs.add("update.minHealthy", "%q is more than 100%%", u.MinHealthy)
	}
	_, _, surgeErr := checkAmount(errs, "update.maxSurge", u.MaxSurge)
	if u.MinHealthyTime != nil {
		atLeast(errs, "update.minHealthyTime", *u.MinHealthyTime, 0)
	}
	atLeast(errs, "update.deadline", u.Deadline, time.Second)
	count := s.Count()
	switch stuck := count > 0 && s.Floor() >= count && s.Ceiling() <= count; {
	case !stuck || err != nil || surgeErr != nil:
	case s.Stateful():
		errs.add("update.minHealthy", "keeps all %d instances, but one with a persistent volume has to end before its replacement starts: write at most %d", count, count-1)
	default:
		errs.add("update", "minHealthy keeps all %d instances and maxSurge allows none more, so no instance could ever be replaced: lower minHealthy or raise maxSurge", count)
	}
}

func checkAmount(errs *FieldErrors, at string, a Amount) (n int, percent bool, err error) {
	if a == "" {
		return 0, false, nil
	}
	if n, percent, err = a.parse(); err != nil {
		errs.add(at, "%v", err)
	}
	return n, percent, err
}

// SignalNumber returns the number that Linux gives a signal's name, with or without SIG.
func SignalNumber(name string) (int, bool) {
	n, ok := map[string]int{
		"HUP": 1, "INT": 2, "QUIT": 3, "KILL": 9, "USR1": 10, "USR2": 12, "TERM": 15, "STOP": 19, "CONT": 18, "WINCH": 28,
	}[strings.TrimPrefix(strings.ToUpper(name), "SIG")]
	return n, ok
}

func oneOf[T ~string](errs *FieldErrors, at string, v T, allowed ...T) {
	if v != "" && !slices.Contains(allowed, v) {
		errs.add(at, "%q is not one of %v", v, allowed)
	}
}

// atLeast refuses durations from 1ns up to less than least; zero means the default.
func atLeast(errs *FieldErrors, at string, d Duration, least time.Duration) {
	if d != 0 && d.Std() < least {
		errs.add(at, "%v is less than %v", d, least)
	}
}

func checkText(errs *FieldErrors, at, s string) {
	if len(s) > MaxText {
		errs.add(at, "has %d bytes, at most %d are allowed", len(s), MaxText)
	}
	if strings.ContainsRune(s, 0) {
		errs.add(at, "has a NUL byte")
	}
}

func checkList(errs *FieldErrors, at string, list []string) {
	if len(list) > MaxList {
		errs.add(at, "has %d entries, at most %d are allowed", len(list), MaxList)
	}
	for i, s := range list {
		checkText(errs, fmt.Sprintf("%s[%d]", at, i), s)
	}
}

func checkMap(errs *FieldErrors, at string, m map[string]string) {
	if len(m) > MaxList {
		errs.add(at, "has %d entries, at most %d are allowed", len(m), MaxList)
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		checkText(errs, fmt.Sprintf("%s[%q]", at, k), k+m[k])
	}
}
