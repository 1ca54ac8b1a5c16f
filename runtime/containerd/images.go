package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// image is what starting a container needs to know of its image. It does not change for one manifest.
type image struct {
	record images.Image
	config ocispec.ImageConfig
	chain  string // the snapshot that holds all its layers
}

// stopSignal returns the signal that the image asks to be stopped with, or 0.
func (i *image) stopSignal() int {
	n, _ := model.SignalNumber(i.config.StopSignal)
	return n
}

// maxImages bounds the memory of images that were started lately.
const maxImages = 256

// image returns an image that is present.
func (d *Driver) image(ctx context.Context, cli *client.Client, ref string) (*image, error) {
	name, err := normalize(ref)
	if err != nil {
		return nil, err
	}
	record, err := cli.ImageService().Get(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%w: image %s is not on this node", runtime.ErrInvalid, ref)
	}
	if err != nil {
		return nil, fmt.Errorf("look up image %s: %w", ref, d.failure(ctx, err))
	}
	d.mu.Lock()
	img := d.images[record.Target.Digest]
	d.mu.Unlock()
	if img != nil {
		return &image{record: record, config: img.config, chain: img.chain}, nil
	}
	if img, err = readImage(ctx, cli, record); err != nil {
		return nil, fmt.Errorf("read image %s: %w", ref, d.failure(ctx, err))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.images) >= maxImages {
		clear(d.images)
	}
	d.images[record.Target.Digest] = img
	return img, nil
}

func readImage(ctx context.Context, cli *client.Client, record images.Image) (*image, error) {
	desc, err := record.Config(ctx, cli.ContentStore(), platforms.Default())
	if err != nil {
		if errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("%w: it is not made for this machine's kind of processor, or incomplete", runtime.ErrInvalid)
		}
		return nil, err
	}
	text, err := content.ReadBlob(ctx, cli.ContentStore(), desc)
	if err != nil {
		return nil, err
	}
	var spec ocispec.Image
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("%w: its configuration is not JSON: %w", runtime.ErrInvalid, err)
	}
	if len(spec.RootFS.DiffIDs) == 0 {
		return nil, fmt.Errorf("%w: it has no layers", runtime.ErrInvalid)
	}
	return &image{record: record, config: spec.Config, chain: identity.ChainID(spec.RootFS.DiffIDs).String()}, nil
}

// unpack makes snapshots of the image's layers, unless they exist.
func (d *Driver) unpack(ctx context.Context, cli *client.Client, img *image) error {
	if _, err := cli.SnapshotService(d.snapshotter).Stat(ctx, img.chain); err == nil {
		return nil
	}
	if err := client.NewImage(cli, img.record).Unpack(ctx, d.snapshotter); err != nil {
		return fmt.Errorf("unpack image %s: %w", familiar(img.record.Name), d.failure(ctx, err))
	}
	return nil
}

// normalize writes an image's name in full: nginx is docker.io/library/nginx:latest.
func normalize(ref string) (string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fmt.Errorf("%w: %q is not the name of an image: %w", runtime.ErrInvalid, ref, err)
	}
	return named.String(), nil
}

// familiar writes an image's name as people do.
func familiar(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(named)
}

// ListImages returns the images on this node by name.
func (d *Driver) ListImages(ctx context.Context) ([]runtime.Image, error) {
	ctx, cli, err := d.client(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	all, err := cli.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", d.failure(ctx, err))
	}
	out := make([]runtime.Image, 0, len(all))
	for _, i := range all {
		size, err := i.Size(ctx, cli.ContentStore(), platforms.Default())
		if err = d.failure(ctx, err); err != nil && !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("measure image %s: %w", i.Name, err)
		}
		out = append(out, runtime.Image{
			Name:    familiar(i.Name),
			Digest:  i.Target.Digest.String(),
			Size:    model.Bytes(size),
			Created: i.CreatedAt,
		})
	}
	slices.SortFunc(out, func(a, b runtime.Image) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Import loads the images of an OCI layout or a Docker archive, plain or compressed by gzip or zstd.
func (d *Driver) Import(ctx context.Context, archive io.Reader) ([]string, error) {
	ctx, cli, err := d.client(ctx)
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	plain, err := compression.DecompressStream(archive)
	if err != nil {
		return nil, fmt.Errorf("import images: %w: not an archive: %w", runtime.ErrInvalid, err)
	}
	defer plain.Close()
	records, err := cli.Import(ctx, plain,
		client.WithImageRefTranslator(importedName),
		client.WithDigestRef(nameless),
		client.WithSkipDigestRef(func(name string) bool { return name != "" }))
	if err = d.failure(ctx, err); errors.Is(err, runtime.ErrUnavailable) || ctx.Err() != nil {
		return nil, fmt.Errorf("import images: %w", err)
	} else if err != nil {
		return nil, fmt.Errorf("import images: %w: this is not an image archive, or it is damaged: %w", runtime.ErrInvalid, err)
	}
	var names []string
	for _, r := range records {
		img, err := readImage(ctx, cli, r)
		if err == nil {
			err = d.unpack(ctx, cli, img)
		}
		if err != nil {
			return nil, fmt.Errorf("import images: %w", err)
		}
		names = append(names, familiar(r.Name))
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("import images: %w: the archive holds no image for this machine", runtime.ErrInvalid)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// importedRepository names images that an archive gives only a tag, or nothing at all.
const importedRepository = "docker.io/library/imported"

// importedName makes a full name of the one in an OCI layout, which may be only a tag.
func importedName(ref string) string {
	isTag := ref == "latest" || !strings.ContainsAny(ref, "/:@") && strings.ContainsAny(ref, "0123456789.")
	if !isTag {
		if name, err := normalize(ref); err == nil {
			return name
		}
	}
	if name, err := normalize(importedRepository + ":" + ref); err == nil {
		return name
	}
	return ""
}

// nameless names an image by what it holds.
func nameless(d digest.Digest) string {
	return importedRepository + ":" + d.Encoded()[:12]
}
