package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// specOf parses a command line of run as cobra does, and returns the app that would be sent as JSON.
func specOf(t *testing.T, line string) (string, error) {
	t.Helper()
	var o runOptions
	var text string
	cmd := &cobra.Command{Use: "run", SilenceErrors: true, SilenceUsage: true, RunE: func(cmd *cobra.Command, args []string) error {
		target, program, err := splitDash(args, cmd.ArgsLenAtDash())
		if err != nil {
			return err
		}
		s, err := o.spec(target, program)
		if err != nil {
			return err
		}
		b, err := json.Marshal(s)
		text = string(b)
		return err
	}}
	o.add(cmd)
	cmd.SetArgs(strings.Fields(line))
	err := cmd.Execute()
	return text, err
}

// What a command line asks for is exactly what it says, with nothing added but what the help of run promises.
func TestRunFlags(t *testing.T) {
	t.Setenv("FROM_HERE", "yes")
	for line, want := range map[string]string{
		"nginx": `{"id":"/nginx","containers":[{"image":"nginx"}]}`,
		"registry.example/Acme/Web_UI:1.2@sha256:ab":                          `{"id":"/web-ui","containers":[{"image":"registry.example/Acme/Web_UI:1.2@sha256:ab"}]}`,
		"localhost:5000/a/b":                                                  `{"id":"/b","containers":[{"image":"localhost:5000/a/b"}]}`,
		"-- sleep 5":                                                          `{"id":"/sleep","containers":[{"command":["sleep","5"]}]}`,
		"nginx -- nginx -g x":                                                 `{"id":"/nginx","containers":[{"image":"nginx","command":["nginx","-g","x"]}]}`,
		"--cpus 0.2 -- ./My.Server --port $PORT0":                             `{"id":"/my-server","containers":[{"command":["./My.Server","--port","$PORT0"],"cpus":0.2}],"endpoints":[{"name":"http"}]}`,
		"--port web -- srv ${PORT0}":                                          `{"id":"/srv","containers":[{"command":["srv","${PORT0}"]}],"endpoints":[{"name":"web"}]}`,
		"--name shop/web -i 0 nginx":                                          `{"id":"/shop/web","instances":0,"containers":[{"image":"nginx"}]}`,
		"--id /x --health-http /ok nginx":                                     `{"id":"/x","containers":[{"image":"nginx"}],"endpoints":[{"name":"http"}],"health":[{"http":{"endpoint":"http","path":"/ok"}}]}`,
		"-p a:80 -p b --health-http / nginx":                                  `{"id":"/nginx","containers":[{"image":"nginx"}],"endpoints":[{"name":"a","port":80},{"name":"b"}],"health":[{"http":{"endpoint":"a","path":"/"}}]}`,
		"-v /srv/a/../b:/data:ro -v /c:/d nginx":                              `{"id":"/nginx","containers":[{"image":"nginx","mounts":[{"volume":"volume-0","path":"/data","readOnly":true},{"volume":"volume-1","path":"/d"}]}],"volumes":[{"name":"volume-0","hostPath":"/srv/b"},{"name":"volume-1","hostPath":"/c"}]}`,
		"-e A=b=c -e FROM_HERE -e E= -l k=v nginx":                            `{"id":"/nginx","containers":[{"image":"nginx","env":{"A":"b=c","E":"","FROM_HERE":"yes"}}],"labels":{"k":"v"}}`,
		"-u www:www --dir /srv --pull never --memory 64MiB --disk 1GiB nginx": `{"id":"/nginx","containers":[{"image":"nginx","pull":"never","user":"www:www","dir":"/srv","memory":"64MiB","disk":"1GiB"}]}`,
		"--constraint hostname:UNIQUE --constraint rack:LIKE:r[12] --role batch/etl --priority 0 --pool gpu --placement spread --gpus 0.5 nginx": `{"id":"/nginx","containers":[{"image":"nginx","gpus":0.5}],"pool":"gpu","role":"/batch/etl","priority":0,"placement":"spread","constraints":[{"attribute":"hostname","operator":"UNIQUE"},{"attribute":"rack","operator":"LIKE","value":"r[12]"}]}`,
	} {
		got, err := specOf(t, line)
		if err != nil || got != want {
			t.Errorf("run %s: %v\n got %s\nwant %s", line, err, got, want)
		}
	}
}

// What cannot be meant is refused before anything is sent.
func TestRunFlagsWrong(t *testing.T) {
	for line, want := range map[string]string{
		"":                           "say what to run",
		"a b":                        "put -- before",
		"-p http:0 nginx":            "1 to 65535",
		"-p 8080 nginx":              "http:8080",
		"-p a -p a nginx":            "used twice",
		"-v /a nginx":                "HOST:PATH",
		"-v /a:/b:rw nginx":          "HOST:PATH:ro",
		"-v /:/b nginx":              "hostPath",
		"-e NOT_SET_ANYWHERE nginx":  "KEY=VALUE",
		"-l k nginx":                 "KEY=VALUE",
		"--pull sometimes nginx":     "pull",
		"--name Bad nginx":           "lower-case",
		"--health-http ok nginx":     "does not begin with /",
		"--memory 1KiB nginx":        "4MiB",
		"--instances -1 -- sleep 1":  "instances",
		"--constraint rack nginx":    "hostname UNIQUE",
		"--constraint rack:LIKE:[ x": "constraints[0].value",
		"--role A/b nginx":           "--role",
		"--priority 101 nginx":       "outside 0 to 100",
		"--placement tight nginx":    "pack",
		"--pool GPU nginx":           "pool",
		"--gpus 1.5 nginx":           "whole devices",
		"--name " + strings.Repeat("a", 64) + " x": "at most 63",
	} {
		_, err := specOf(t, line)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("run %s: got %v, want %q", line, err, want)
		}
		var usage usageError
		if !errors.As(err, &usage) {
			t.Errorf("run %s: %v is no usage error", line, err)
		}
	}
}

func TestAsName(t *testing.T) {
	for in, want := range map[string]string{"": "app", "...": "app", "ÄB": "b", "python3.11": "python3-11", strings.Repeat("x", 99): strings.Repeat("x", 63)} {
		if got := asName(in); got != want {
			t.Errorf("asName(%q) = %q, want %q", in, got, want)
		}
	}
}
