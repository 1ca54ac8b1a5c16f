package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// settings fills in flags that were not given from the environment, and those that are not there from the file of --config.
func settings(flags *pflag.FlagSet, prefix string, getenv func(string) string) error {
	var values map[string][]string
	file, err := flags.GetString("config")
	if err != nil {
		return err
	}
	if file != "" {
		if values, err = readSettings(file, flags); err != nil {
			return err
		}
	}
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed || !isSetting(f.Name) {
			return
		}
		env := prefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v := getenv(env); v != "" {
			if err := flags.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", env, err))
			}
			return
		}
		for _, v := range values[f.Name] {
			if err := flags.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %s: %w", file, f.Name, err))
			}
		}
	})
	return errors.Join(errs...)
}

// isSetting reports whether a flag may stand in a file: not those that say which file, or what is done.
func isSetting(name string) bool {
	return !slices.Contains([]string{"config", "help", "json", "addr", "token-file", "ca-file"}, name)
}

// readSettings reads a file of settings: names of flags, each with a value, or a list of them for flags that may be given
// several times. Unknown names are refused.
func readSettings(file string, flags *pflag.FlagSet) (map[string][]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parseSettings(file, b, flags)
}

func parseSettings(file string, b []byte, flags *pflag.FlagSet) (map[string][]string, error) {
	var raw map[string]yaml.Node
	dec := yaml.NewDecoder(strings.NewReader(string(b)))
	if err := dec.Decode(&raw); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	out := map[string][]string{}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		n := raw[name]
		if flags.Lookup(name) == nil || !isSetting(name) {
			errs = append(errs, fmt.Errorf("%s:%d: there is no setting %q: %s", file, n.Line, name, settingNames(flags)))
			continue
		}
		values := []*yaml.Node{&n}
		if n.Kind == yaml.SequenceNode {
			values = n.Content
		}
		for _, v := range values {
			if v.Kind != yaml.ScalarNode {
				errs = append(errs, fmt.Errorf("%s:%d: %s: write a value, or a list of values", file, v.Line, name))
				continue
			}
			out[name] = append(out[name], v.Value)
		}
	}
	return out, errors.Join(errs...)
}

func settingNames(flags *pflag.FlagSet) string {
	var names []string
	flags.VisitAll(func(f *pflag.Flag) {
		if isSetting(f.Name) {
			names = append(names, f.Name)
		}
	})
	return "there are " + strings.Join(names, ", ")
}

func (c *cli) configCommand() *cobra.Command {
	config := &cobra.Command{Use: "config", Short: "Check files of settings", Example: "  gantry config check /etc/gantry/server.yaml"}
	role := "server"
	check := &cobra.Command{
		Use:     "check FILE",
		Short:   "Say whether a file of settings is right, and what holds with it",
		Long:    "Say whether a file of settings for gantry server or gantry agent is right, and print all settings that hold with it. Nothing is started.",
		Example: "  gantry config check /etc/gantry/server.yaml\n  gantry config check --role agent /etc/gantry/agent.yaml",
		Args:    args(1, 1),
		RunE:    func(_ *cobra.Command, a []string) error { return c.checkConfig(role, a[0]) },
	}
	check.Flags().StringVar(&role, "role", role, "server or agent")
	completeWords(check, "role", "server", "agent")
	config.AddCommand(check)
	return config
}

func (c *cli) checkConfig(role, file string) error {
	parts := c.serverParts
	switch role {
	case "server":
	case "agent":
		parts = c.agentParts
	default:
		return usageError{fmt.Errorf("--role %q: write server or agent", role)}
	}
	cmd, check := parts()
	flags := cmd.Flags()
	flags.StringVar(&c.dataDir, "data-dir", "", "")
	if err := flags.Set("config", file); err != nil {
		return err
	}
	if err := settings(flags, "GANTRY_"+strings.ToUpper(role)+"_", c.getenv); err != nil {
		return usageError{err}
	}
	if err := check(); err != nil {
		return usageError{fmt.Errorf("%s: %w", file, err)}
	}
	flags.VisitAll(func(f *pflag.Flag) {
		if v := f.Value.String(); isSetting(f.Name) && v != "" && v != "[]" {
			if f.Name == "token" {
				v = "********"
			}
			fmt.Fprintf(c.out, "%s: %s\n", f.Name, v)
		}
	})
	return nil
}
