package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// unitDir is where an administrator's units lie.
const unitDir = "/etc/systemd/system"

// installCommand returns `gantry install`.
func (c *cli) installCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "install", Short: "Have this machine start Gantry by itself", Args: noSuchCommand,
		Example: "  gantry install systemd --role agent",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.systemdCommand())
	return cmd
}

// unit is what a unit file is made from.
type unit struct {
	Role   model.MachineRole `json:"role"`
	Binary string            `json:"binary"`
	Config string            `json:"config"`
	File   string            `json:"file"`
	Text   string            `json:"text"`
}

func (c *cli) systemdCommand() *cobra.Command {
	var role, config, dir string
	var only bool
	cmd := &cobra.Command{
		Use: "systemd", Short: "Write a unit for systemd",
		Long: `Write a unit for systemd. When it stops, is started again or fails, only Gantry's own process ends: instances run on, and are
adopted by the next start. A server whose machine is a node, too, has agent: true in its configuration file.`,
		Example: `  gantry install systemd --role server --config /etc/gantry/server.yaml
  gantry install systemd --role agent --print`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := newUnit(role, config, dir)
			if err != nil {
				return usageError{err}
			}
			if !only {
				if err := u.write(cmd); err != nil {
					return err
				}
			}
			return c.print(u, func(*show.Printer) {
				if only {
					fmt.Fprint(c.out, u.Text)
					return
				}
				name := filepath.Base(u.File)
				c.say("wrote %s; start it with:\n  systemctl daemon-reload\n  systemctl enable --now %s", u.File, name)
			})
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "what this machine is: server or agent")
	cmd.Flags().StringVar(&config, "config", "", "its configuration `file` (default /etc/gantry/ROLE.yaml)")
	cmd.Flags().StringVar(&dir, "dir", unitDir, "`directory` to write to")
	cmd.Flags().BoolVar(&only, "print", false, "print the unit, and write nothing")
	completeWords(cmd, "role", string(model.ServerMachine), string(model.AgentMachine))
	return cmd
}

func newUnit(role, config, dir string) (*unit, error) {
	r, err := model.ParseMachineRole(role)
	if err != nil {
		return nil, fmt.Errorf("--role: %w", err)
	}
	if config == "" {
		config = "/etc/gantry/" + role + ".yaml"
	}
	if config, err = filepath.Abs(config); err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	binary, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	u := &unit{Role: r, Binary: binary, Config: config, File: filepath.Join(dir, "gantry-"+role+".service")}
	for _, path := range []string{u.Binary, u.Config} {
		if strings.ContainsAny(path, "\n\r") {
			return nil, errors.New("a path with a line break cannot be written into a unit")
		}
	}
	u.Text = u.text()
	return u, nil
}

// quoted writes a path as an argument in ExecStart.
func quoted(path string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(path) + `"`
}

func (u *unit) text() string {
	return fmt.Sprintf(`[Unit]
Description=Gantry %[1]s
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart=%[2]s %[1]s --config %[3]s
Restart=always
RestartSec=2
# Only the process itself ends with the unit: instances outlive it.
KillMode=process
Delegate=yes
TimeoutStopSec=90
LimitNOFILE=1048576
LimitNPROC=infinity
TasksMax=infinity

[Install]
WantedBy=multi-user.target
`, u.Role, quoted(u.Binary), quoted(u.Config))
}

// write puts the unit in place, if systemd understands it.
func (u *unit) write(cmd *cobra.Command) error {
	temp, err := os.MkdirTemp("", "gantry-unit-")
	if err != nil {
		return fmt.Errorf("write unit: %w", err)
	}
	defer os.RemoveAll(temp)
	draft := filepath.Join(temp, filepath.Base(u.File))
	if err := os.WriteFile(draft, []byte(u.Text), 0o644); err != nil {
		return fmt.Errorf("write unit: %w", err)
	}
	if tool, err := exec.LookPath("systemd-analyze"); err == nil {
		if out, err := exec.CommandContext(cmd.Context(), tool, "verify", draft).CombinedOutput(); err != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "systemd-analyze verify says of the unit: %v\n%s", err, out)
		}
	}
	if err := os.MkdirAll(filepath.Dir(u.File), 0o755); err != nil {
		return fmt.Errorf("write unit: %w", err)
	}
	if err := os.WriteFile(u.File, []byte(u.Text), 0o644); err != nil {
		return fmt.Errorf("write unit: %w", err)
	}
	return nil
}
