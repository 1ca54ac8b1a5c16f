package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/gantry-os/gantry/model"
)

// imageRef names the image of the witness, which is given to every node.
const imageRef = "gantry.test/witness:1"

// apps are what clients change, besides calmApp.
var apps = []model.AppID{"/svc/a", "/svc/b", "/db", "/image"}

// allApps are all that there are.
var allApps = append([]model.AppID{calmApp}, apps...)

// valueLabel holds what a client wrote last into an app.
const valueLabel = "value"

// install makes all apps.
func (r *run) install(ctx context.Context) error {
	archive, err := imageArchive()
	if err != nil {
		return err
	}
	for _, node := range r.nodes {
		if _, err := r.client(r.servers[0]).ImportImages(ctx, node, bytes.NewReader(archive)); err != nil {
			return fmt.Errorf("give node %s the image: %w", node, err)
		}
	}
	for _, id := range allApps {
		if _, err := r.client(r.servers[0]).CreateApp(ctx, r.spec(id, agentCount, "", 0)); err != nil {
			return fmt.Errorf("create %s: %w", id, err)
		}
	}
	r.say("%d apps are asked for", len(allApps))
	return nil
}

// spec returns an app with so many instances. Those that run another content are replaced.
func (r *run) spec(id model.AppID, instances int, value string, content int) *model.Spec {
	socket := r.census.l.Addr().String()
	c := model.Container{CPUs: 20, Memory: 32 * model.MiB, Env: map[string]string{"CONTENT": fmt.Sprint(content)}}
	s := &model.Spec{ID: id, Instances: &instances, Update: &model.Update{Deadline: model.Duration(time.Minute)}}
	s.Restart = &model.Restart{Backoff: model.Duration(200 * time.Millisecond), Max: model.Duration(2 * time.Second)}
	if value != "" {
		s.Labels = map[string]string{valueLabel: value}
	}
	exe, err := os.Executable()
	if err != nil {
		panic(err) // it was found at the start
	}
	switch id {
	case calmApp:
		s.Constraints = []model.Constraint{{Attribute: model.AttrHostname, Operator: model.OpUnique}}
		s.Unreachable = &model.Unreachable{Never: true}
	case "/db":
		s.Volumes = []model.Volume{{Name: "data", Persistent: &model.Persistent{Size: model.MiB}}}
		c.Mounts = []model.Mount{{Volume: "data", Path: "data"}}
	default:
		s.Endpoints = []model.Endpoint{{Name: "http"}}
		s.Health = []model.Check{{HTTP: &model.HTTPCheck{Endpoint: "http"}, Interval: model.Duration(2 * time.Second)}}
		s.Unreachable = &model.Unreachable{ReplaceAfter: model.Duration(5 * time.Second), ExpungeAfter: model.Duration(15 * time.Second)}
	}
	c.Command = []string{exe, witnessArg, socket}
	if id == "/image" {
		c.Image, c.Pull = imageRef, model.PullNever
		c.Command = []string{"/witness", witnessArg, "/lab/census"}
		s.Volumes = []model.Volume{{Name: "lab", HostPath: filepath.Dir(socket)}}
		c.Mounts = []model.Mount{{Volume: "lab", Path: "/lab", ReadOnly: true}}
	}
	s.Containers = []model.Container{c}
	return s
}

// imageArchive returns an image that holds nothing but this program.
func imageArchive() ([]byte, error) {
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	for _, h := range []*tar.Header{
		{Name: "lab/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "witness", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(exe))},
	} {
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	if _, err := w.Write(exe); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file.Architecture, file.OS = "amd64", "linux"
	if img, err = mutate.ConfigFile(img, file); err != nil {
		return nil, err
	}
	return saveImage(img)
}

func saveImage(img v1.Image) ([]byte, error) {
	tag, err := name.NewTag(imageRef)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = tarball.Write(tag, img, &out)
	return out.Bytes(), err
}
