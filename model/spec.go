package model

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"
)

// Spec is what a user asks for: an app as written in a file or sent to the API. It is stored as written.
// Zero values mean "the default"; WithDefaults fills them in.
type Spec struct {
	ID          AppID             `json:"id" doc:"Path of the app in the tree of groups, such as /shop/web."`
	Instances   *int              `json:"instances,omitempty" doc:"How many identical instances to keep running. Default 1."`
	Containers  []Container       `json:"containers" doc:"What each instance runs. All containers of an instance share its network and volumes, start together and are restarted together."`
	Endpoints   []Endpoint        `json:"endpoints,omitempty" doc:"Ports that the instance listens on."`
	Volumes     []Volume          `json:"volumes,omitempty" doc:"Directories that containers mount."`
	Labels      map[string]string `json:"labels,omitempty" doc:"Free-form marks. Changing them restarts nothing."`
	Health      []Check           `json:"health,omitempty" doc:"Liveness checks: an instance that fails one is restarted."`
	Readiness   []Check           `json:"readiness,omitempty" doc:"Readiness checks: an instance counts for a deployment, and gets traffic, once all pass."`
	Restart     *Restart          `json:"restart,omitempty" doc:"How long to wait before an instance that ended is started again."`
	Stop        *Stop             `json:"stop,omitempty" doc:"How an instance is asked to end."`
	Update      *Update           `json:"update,omitempty" doc:"How one version replaces another. Changing it restarts nothing."`
	Unreachable *Unreachable      `json:"unreachable,omitempty" doc:"What becomes of instances whose node does not answer. Changing it restarts nothing."`
	KillOrder   KillOrder         `json:"killOrder,omitempty" enum:"youngest-first,oldest-first" doc:"Which instances go first on scale down. Default youngest-first."`

	Isolation   Isolation    `json:"isolation,omitempty" enum:"vm" doc:"vm: each instance runs in a virtual machine of its own, on nodes that can give it one. All its containers need an image. Default: namespaces and cgroups."`
	Pool        string       `json:"pool,omitempty" doc:"Part of the nodes that it runs on. Default default."`
	Role        RoleID       `json:"role,omitempty" doc:"Role whose share of the cluster it uses, such as /analytics/batch. Default /. Changing it restarts nothing: all instances count under the new one."`
	Priority    *int         `json:"priority,omitempty" doc:"From 0 to 100. Within a role, higher goes first and may end lower to make room. Default 50. Changing it restarts nothing."`
	Placement   Policy       `json:"placement,omitempty" enum:"pack,spread,balanced" doc:"How nodes are chosen among those that fit. Default: the pool's, which is pack. Changing it restarts nothing."`
	Constraints []Constraint `json:"constraints,omitempty" doc:"Which nodes may take an instance. All must hold."`
	Affinity    []Affinity   `json:"affinity,omitempty" doc:"Apps to be near to, or away from."`
	Spread      []Spread     `json:"spread,omitempty" doc:"Attributes of nodes to distribute instances over. Changing it restarts nothing."`
}

// Container is one program of an instance: an OCI image, or with no image a program of the node itself.
type Container struct {
	Name      string            `json:"name,omitempty" doc:"Unique within the app. Default main for the first container."`
	Image     string            `json:"image,omitempty" doc:"OCI image reference. Without one, the command is a program of the node, run in its own process and mount namespaces and cgroup."`
	Pull      PullPolicy        `json:"pull,omitempty" enum:"missing,always,never" doc:"When to fetch the image from its registry. Default missing."`
	Auth      *RegistryAuth     `json:"auth,omitempty" doc:"Credentials for the image's registry."`
	Command   []string          `json:"command,omitempty" doc:"Program and arguments. $PORT0, $HOST and the other variables that Gantry sets are replaced in each argument. Replaces an image's entrypoint and command."`
	Args      []string          `json:"args,omitempty" doc:"Arguments to the image's own entrypoint."`
	Shell     string            `json:"shell,omitempty" doc:"A command line for /bin/sh -c, instead of command."`
	Env       map[string]string `json:"env,omitempty" doc:"Environment variables."`
	User      string            `json:"user,omitempty" doc:"User, or user:group, by name or number. Default: the image's user, or that of Gantry."`
	Dir       string            `json:"dir,omitempty" doc:"Working directory. Default: the image's, or the instance's sandbox."`
	CPUs      CPU               `json:"cpus,omitempty" doc:"Cores reserved, and the most that may be used. Default 0.1."`
	Memory    Bytes             `json:"memory,omitempty" doc:"Memory reserved, and the most that may be used. Default 128MiB."`
	Disk      Bytes             `json:"disk,omitempty" doc:"Disk reserved for the sandbox. Default 0."`
	GPUs      GPU               `json:"gpus,omitempty" doc:"Graphics processors: a number of whole devices, or a share of one below 1. Default 0."`
	GPUModels []string          `json:"gpuModels,omitempty" doc:"Models of devices that will do. Default any."`
	Custom    map[string]Units  `json:"custom,omitempty" doc:"Custom resources that nodes declare, by name: an amount, or how many items of a set."`
	Artifacts []Artifact        `json:"artifacts,omitempty" doc:"Files fetched into the sandbox before start."`
	Mounts    []Mount           `json:"mounts,omitempty" doc:"Volumes that the container sees."`
}

// Isolation is what stands between an instance and the rest of its node.
type Isolation string

// IsolationVM asks for a virtual machine: it may run on nodes with Node.VM.
const IsolationVM Isolation = "vm"

// PullPolicy says when an image is fetched.
type PullPolicy string

// Pull policies.
const (
	PullMissing PullPolicy = "missing"
	PullAlways  PullPolicy = "always"
	PullNever   PullPolicy = "never"
)

// RegistryAuth is a user's name and password at a registry.
type RegistryAuth struct {
	Username string `json:"username" doc:"User name at the registry."`
	Password string `json:"password" doc:"Password or token. The API never shows it again."`
}

// Artifact is a file that the agent fetches into the sandbox.
type Artifact struct {
	URI        string `json:"uri" doc:"file:, http: or https: address."`
	Checksum   string `json:"checksum,omitempty" doc:"sha256:HEX or sha512:HEX. The instance does not start when the content differs."`
	Path       string `json:"path,omitempty" doc:"Where to put it, relative to the sandbox. Default: the last part of the address."`
	Extract    *bool  `json:"extract,omitempty" doc:"Unpack .tar, .tar.gz, .tgz, .tar.xz, .tar.bz2, .tar.zst and .zip archives. Default true for those endings."`
	Executable bool   `json:"executable,omitempty" doc:"Mark the file as executable."`
	NoCache    bool   `json:"noCache,omitempty" doc:"Fetch anew each time instead of using the node's cache."`
}

// Endpoint is a named port of every instance.
type Endpoint struct {
	Name     string `json:"name" doc:"Unique within the app."`
	Port     int    `json:"port,omitempty" doc:"Fixed port of the node. Default 0: a free one is assigned and given as $PORT0, $PORT1, ... and $PORT_NAME."`
	Protocol string `json:"protocol,omitempty" enum:"tcp,udp" doc:"Default tcp."`
}

// Volume is a directory that containers of an instance share. Exactly one source is set.
type Volume struct {
	Name       string      `json:"name" doc:"Unique within the app."`
	HostPath   string      `json:"hostPath,omitempty" doc:"An absolute directory of the node. It is created when it does not exist and outlives the instance."`
	Scratch    bool        `json:"scratch,omitempty" doc:"An empty directory that lives as long as the instance and survives its restarts."`
	Persistent *Persistent `json:"persistent,omitempty" doc:"A directory on the node that outlives the instance: its replacement comes back to the node and finds it. Gives each instance a slot, from 1, as $SLOT."`
}

// Mount puts a volume into a container.
type Mount struct {
	Volume   string `json:"volume" doc:"Name of the volume."`
	Path     string `json:"path" doc:"Where the container sees it. Relative paths are below the sandbox. Without an image, an absolute path must exist on the node."`
	ReadOnly bool   `json:"readOnly,omitempty" doc:"Refuse writes."`
}

// Check is one periodic probe. Exactly one of HTTP, TCP and Command is set.
type Check struct {
	HTTP     *HTTPCheck    `json:"http,omitempty" doc:"Passes on a status from 200 to 399."`
	TCP      *TCPCheck     `json:"tcp,omitempty" doc:"Passes when a connection opens."`
	Command  *CommandCheck `json:"command,omitempty" doc:"Passes on exit code 0."`
	Grace    Duration      `json:"grace,omitempty" doc:"Failures this soon after start do not count until the check has passed once. Default 10s."`
	Interval Duration      `json:"interval,omitempty" doc:"Time between probes. Default 5s, and 1s until the check has passed once."`
	Timeout  Duration      `json:"timeout,omitempty" doc:"Time one probe may take. Default 3s."`
	Failures int           `json:"failures,omitempty" doc:"Consecutive failures after which the check fails. Default 3."`
}

// HTTPCheck asks an endpoint for a page.
type HTTPCheck struct {
	Endpoint string `json:"endpoint" doc:"Name of the endpoint."`
	Path     string `json:"path,omitempty" doc:"Default /."`
	Scheme   string `json:"scheme,omitempty" enum:"http,https" doc:"Default http. Certificates are not verified."`
}

// TCPCheck opens a connection to an endpoint.
type TCPCheck struct {
	Endpoint string `json:"endpoint" doc:"Name of the endpoint."`
}

// CommandCheck runs a program in a container.
type CommandCheck struct {
	Container string   `json:"container,omitempty" doc:"Default: the first container."`
	Command   []string `json:"command" doc:"Program and arguments."`
}

// Restart is the policy for an instance that ended by itself. The wait before attempt n+1 is
// Backoff x Factor^(n-1), at most Max; after Reset of running without an end it begins again at Backoff.
type Restart struct {
	Backoff Duration `json:"backoff,omitempty" doc:"First wait. Default 1s."`
	Factor  float64  `json:"factor,omitempty" doc:"How much longer each next wait is. Default 2."`
	Max     Duration `json:"max,omitempty" doc:"Longest wait. Default 5m."`
	Reset   Duration `json:"reset,omitempty" doc:"After running this long the next wait is Backoff again. Default 5m."`
}

// Stop is how an instance is asked to end.
type Stop struct {
	Signal string   `json:"signal,omitempty" doc:"Signal sent first. Default: the image's, or SIGTERM."`
	Grace  Duration `json:"grace,omitempty" doc:"Time until SIGKILL follows. Default 10s."`
}

// Update is the policy for replacing one version by another.
type Update struct {
	MinHealthy     Amount    `json:"minHealthy,omitempty" doc:"Floor of healthy instances while updating, as a count or percentage of the instances. Default 100%; one less than the instances when they have a fixed port, a persistent volume, or write to a host path, so that one ends before the next starts."`
	MaxSurge       Amount    `json:"maxSurge,omitempty" doc:"How many instances above the count may exist while updating. Default 25%, rounded up; 0 with a fixed port, or a host path that is written to. With a persistent volume it is always 0: one ends before the next starts."`
	MinHealthyTime *Duration `json:"minHealthyTime,omitempty" doc:"How long an instance must be healthy before it counts. Default 0 with checks and 1s without."`
	Deadline       Duration  `json:"deadline,omitempty" doc:"How long a deployment may go without progress before it has failed. Default 5m."`
	NoRollback     bool      `json:"noRollback,omitempty" doc:"Leave a failed deployment as it is instead of going back to the last version that was healthy."`
}

// KillOrder says which instances go first.
type KillOrder string

// Kill orders.
const (
	YoungestFirst KillOrder = "youngest-first"
	OldestFirst   KillOrder = "oldest-first"
)

// Resources are amounts of what a node has or an instance takes.
type Resources struct {
	CPUs   CPU   `json:"cpus" doc:"Cores."`
	Memory Bytes `json:"memory" doc:"Memory."`
	Disk   Bytes `json:"disk" doc:"Disk."`
	GPUs   GPU   `json:"gpus,omitempty" doc:"Graphics processors."`
}

// Add returns the sum of r and o.
func (r Resources) Add(o Resources) Resources {
	return Resources{r.CPUs + o.CPUs, r.Memory + o.Memory, r.Disk + o.Disk, r.GPUs + o.GPUs}
}

// Sub returns r less o.
func (r Resources) Sub(o Resources) Resources {
	return Resources{r.CPUs - o.CPUs, r.Memory - o.Memory, r.Disk - o.Disk, r.GPUs - o.GPUs}
}

// Fits reports whether o is within r in every kind.
func (r Resources) Fits(o Resources) bool {
	return o.CPUs <= r.CPUs && o.Memory <= r.Memory && o.Disk <= r.Disk && o.GPUs <= r.GPUs
}

// Count returns how many instances s asks for.
func (s *Spec) Count() int {
	if s.Instances == nil {
		return 1
	}
	return *s.Instances
}

// Resources returns what one instance takes, defaults included. Persistent volumes are apart: they are kept while no
// instance runs.
func (s *Spec) Resources() Resources {
	var sum Resources
	for _, c := range s.Containers {
		sum = sum.Add(Resources{cmp.Or(c.CPUs, DefaultCPUs), cmp.Or(c.Memory, DefaultMemory), c.Disk, c.GPUs})
	}
	return sum
}

// Custom returns what one instance takes of custom resources; nil for nothing.
func (s *Spec) Custom() map[string]Units {
	var sum map[string]Units
	for _, c := range s.Containers {
		for name, n := range c.Custom {
			if sum == nil {
				sum = map[string]Units{}
			}
			sum[name] += n
		}
	}
	return sum
}

// Defaults of a Spec, as its field documentation states them.
const (
	DefaultCPUs      CPU = 100
	DefaultMemory        = 128 * MiB
	DefaultContainer     = "main"
	DefaultGrace         = Duration(10 * time.Second)
	DefaultDeadline      = Duration(5 * time.Minute)
	DefaultSpread        = 50 // weight
)

// WithDefaults returns a deep copy of s in which every default is filled in. It changes nothing that was written.
// Command and Shell, and an image's own settings, stay as they are: only the runtime knows those.
func (s *Spec) WithDefaults() *Spec {
	out := s.Clone()
	n := s.Count()
	out.Instances = &n
	for i := range out.Containers {
		c := &out.Containers[i]
		if c.Name == "" && i == 0 {
			c.Name = DefaultContainer
		}
		c.Pull = cmp.Or(c.Pull, PullMissing)
		c.CPUs = cmp.Or(c.CPUs, DefaultCPUs)
		c.Memory = cmp.Or(c.Memory, DefaultMemory)
	}
	for i := range out.Endpoints {
		out.Endpoints[i].Protocol = cmp.Or(out.Endpoints[i].Protocol, "tcp")
	}
	for _, checks := range [][]Check{out.Health, out.Readiness} {
		for i := range checks {
			checks[i].fillDefaults(out.Containers)
		}
	}
	out.fillPolicies()
	return out
}

func (c *Check) fillDefaults(containers []Container) {
	c.Grace = cmp.Or(c.Grace, DefaultGrace)
	c.Interval = cmp.Or(c.Interval, Duration(5*time.Second))
	c.Timeout = cmp.Or(c.Timeout, Duration(3*time.Second))
	c.Failures = cmp.Or(c.Failures, 3)
	if c.HTTP != nil {
		c.HTTP.Path = cmp.Or(c.HTTP.Path, "/")
		c.HTTP.Scheme = cmp.Or(c.HTTP.Scheme, "http")
	}
	if c.Command != nil && len(containers) > 0 {
		c.Command.Container = cmp.Or(c.Command.Container, containers[0].Name)
	}
}

func (s *Spec) fillPolicies() {
	if s.Restart == nil {
		s.Restart = &Restart{}
	}
	s.Restart.Backoff = cmp.Or(s.Restart.Backoff, Duration(time.Second))
	s.Restart.Factor = cmp.Or(s.Restart.Factor, 2)
	s.Restart.Max = cmp.Or(s.Restart.Max, Duration(5*time.Minute))
	s.Restart.Reset = cmp.Or(s.Restart.Reset, Duration(5*time.Minute))
	if s.Stop == nil {
		s.Stop = &Stop{}
	}
	s.Stop.Grace = cmp.Or(s.Stop.Grace, DefaultGrace)
	if s.Update == nil {
		s.Update = &Update{}
	}
	s.Update.MinHealthy, s.Update.MaxSurge = s.bounds()
	s.Update.Deadline = cmp.Or(s.Update.Deadline, DefaultDeadline)
	if s.Update.MinHealthyTime == nil {
		d := Duration(0)
		if len(s.Health)+len(s.Readiness) == 0 {
			d = Duration(time.Second)
		}
		s.Update.MinHealthyTime = &d
	}
	s.KillOrder = cmp.Or(s.KillOrder, YoungestFirst)
	s.Unreachable = s.unreachable()
	s.Pool = cmp.Or(s.Pool, DefaultPool)
	s.Role = cmp.Or(s.Role, RootRole)
	if s.Priority == nil {
		n := DefaultPriority
		s.Priority = &n
	}
	for i := range s.Affinity {
		s.Affinity[i].Over = s.Affinity[i].Place()
	}
	for i := range s.Spread {
		s.Spread[i].Weight = cmp.Or(s.Spread[i].Weight, DefaultSpread)
	}
}

// bounds returns the update policy's floor and surge, defaults included.
func (s *Spec) bounds() (floor, surge Amount) {
	floor, surge = "100%", "25%"
	if s.exclusive() {
		floor, surge = Amount(strconv.Itoa(max(0, s.Count()-1))), "0"
	}
	if u := s.Update; u != nil {
		floor, surge = cmp.Or(u.MinHealthy, floor), cmp.Or(u.MaxSurge, surge)
	}
	return floor, surge
}

// Floor returns the number of healthy instances below which no update, move or drain of s goes, defaults included.
func (s *Spec) Floor() int {
	floor, _ := s.bounds()
	return min(floor.Of(s.Count(), true), s.Count())
}

// Ceiling returns how many instances of s may exist at once, defaults included. Beside the holders of all slots there
// is none.
func (s *Spec) Ceiling() int {
	if s.Stateful() {
		return s.Count()
	}
	_, surge := s.bounds()
	return s.Count() + surge.Of(s.Count(), true)
}

// exclusive reports whether an old and a new instance could not run beside each other on one node: they would want the
// same port, or write to the same data.
func (s *Spec) exclusive() bool {
	if s.Stateful() {
		return true // a slot is never held twice
	}
	fixed := slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Port != 0 })
	return fixed || slices.ContainsFunc(s.Containers, func(c Container) bool {
		return slices.ContainsFunc(c.Mounts, func(m Mount) bool {
			return !m.ReadOnly && slices.ContainsFunc(s.Volumes, func(v Volume) bool { return v.Name == m.Volume && v.HostPath != "" })
		})
	})
}

// Clone returns a deep copy of s.
func (s *Spec) Clone() *Spec {
	out := *s
	out.Instances = clonePtr(s.Instances)
	out.Containers = slices.Clone(s.Containers)
	for i := range out.Containers {
		c := &out.Containers[i]
		c.Auth = clonePtr(c.Auth)
		c.Command, c.Args = slices.Clone(c.Command), slices.Clone(c.Args)
		c.Env = maps.Clone(c.Env)
		c.Artifacts, c.Mounts = slices.Clone(c.Artifacts), slices.Clone(c.Mounts)
		c.GPUModels, c.Custom = slices.Clone(c.GPUModels), maps.Clone(c.Custom)
		for j := range c.Artifacts {
			c.Artifacts[j].Extract = clonePtr(c.Artifacts[j].Extract)
		}
	}
	out.Endpoints, out.Volumes = slices.Clone(s.Endpoints), slices.Clone(s.Volumes)
	for i := range out.Volumes {
		out.Volumes[i].Persistent = clonePtr(s.Volumes[i].Persistent)
	}
	out.Labels = maps.Clone(s.Labels)
	out.Priority = clonePtr(s.Priority)
	out.Constraints, out.Affinity, out.Spread = slices.Clone(s.Constraints), slices.Clone(s.Affinity), slices.Clone(s.Spread)
	for i := range out.Spread {
		out.Spread[i].Targets = maps.Clone(s.Spread[i].Targets)
	}
	out.Health, out.Readiness = cloneChecks(s.Health), cloneChecks(s.Readiness)
	out.Restart, out.Stop = clonePtr(s.Restart), clonePtr(s.Stop)
	out.Update, out.Unreachable = clonePtr(s.Update), clonePtr(s.Unreachable)
	if out.Update != nil {
		out.Update.MinHealthyTime = clonePtr(s.Update.MinHealthyTime)
	}
	return &out
}

func cloneChecks(in []Check) []Check {
	out := slices.Clone(in)
	for i := range out {
		c := &out[i]
		c.HTTP, c.TCP, c.Command = clonePtr(c.HTTP), clonePtr(c.TCP), clonePtr(c.Command)
		if c.Command != nil {
			c.Command.Command = slices.Clone(c.Command.Command)
		}
	}
	return out
}

func clonePtr[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}
